#include "trainer/collective.h"

namespace shardtune::trainer {

std::string run_on_rank_zero(parallel::Communicator& comm,
                             const std::function<std::string()>& body) {
  std::string text;
  std::optional<Error> error;
  if (comm.rank() == 0)
    error = parallel::error_of([&] { text = body(); });
  const int own = error ? static_cast<int>(error->exit_code()) : 0;
  const int code = comm.all_gather_value(own)[0];
  text = comm.all_gather_strings(error ? error->what() : text)[0];
  if (code != 0)
    throw parallel::AgreedError(static_cast<ExitCode>(code), text);
  return text;
}

}  // namespace shardtune::trainer
