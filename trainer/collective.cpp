#include "trainer/collective.h"

#include <exception>
#include <optional>

#include "core/error.h"

namespace shardtune::trainer {
namespace {

struct Outcome {
  std::optional<Error> error;
  std::string text;
};

Outcome run(const std::function<std::string()>& body) {
  Outcome outcome;
  try {
    outcome.text = body();
  } catch (const Error& error) {
    outcome.error = error;
  } catch (const std::exception& error) {
    outcome.error.emplace(ExitCode::kInternal, error.what());
  }
  return outcome;
}

}  // namespace

std::string run_on_rank_zero(parallel::Communicator& comm,
                             const std::function<std::string()>& body) {
  Outcome outcome;
  if (comm.rank() == 0)
    outcome = run(body);
  const int own = outcome.error ? static_cast<int>(outcome.error->exit_code()) : 0;
  const int code = comm.all_gather_value(own)[0];
  const std::string sent = outcome.error ? outcome.error->what() : outcome.text;
  const std::string text = comm.all_gather_strings(sent)[0];
  if (code != 0)
    throw Error(static_cast<ExitCode>(code), text);
  return text;
}

}  // namespace shardtune::trainer
