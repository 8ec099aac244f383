#include "parallel/collective_errors.h"

#include <algorithm>
#include <exception>

namespace shardtune::parallel {

std::optional<Error> error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ExitCode::kInternal, error.what());
  }
  return std::nullopt;
}

void run_on_all_ranks(Communicator& comm, const std::function<void()>& body) {
  const std::optional<Error> error = error_of(body);
  const int own = error ? static_cast<int>(error->exit_code()) : 0;
  if (comm.all_reduce_max(own) == 0)
    return;
  const std::vector<int> codes = comm.all_gather_value(own);
  const auto texts = comm.all_gather_strings(error ? error->what() : "");
  const auto failed = std::ranges::find_if(codes, [](int code) { return code != 0; });
  const auto rank = failed - codes.begin();
  const std::string where = comm.world_size() == 1 ? "" : "rank " + std::to_string(rank) + ": ";
  throw AgreedError(static_cast<ExitCode>(*failed), where + texts[static_cast<size_t>(rank)]);
}

}  // namespace shardtune::parallel
