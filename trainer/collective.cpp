#include "trainer/collective.h"

#include <algorithm>
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

void run_on_all_ranks(parallel::Communicator& comm, const std::function<void()>& body) {
  const Outcome outcome = run([&] {
    body();
    return std::string();
  });
  const int own = outcome.error ? static_cast<int>(outcome.error->exit_code()) : 0;
  if (comm.all_reduce_max(own) == 0)
    return;
  const std::vector<int> codes = comm.all_gather_value(own);
  const auto texts = comm.all_gather_strings(outcome.error ? outcome.error->what() : "");
  const auto failed = std::ranges::find_if(codes, [](int code) { return code != 0; });
  const auto rank = failed - codes.begin();
  const std::string where = comm.world_size() == 1 ? "" : "rank " + std::to_string(rank) + ": ";
  throw Error(static_cast<ExitCode>(*failed), where + texts[static_cast<size_t>(rank)]);
}

}  // namespace shardtune::trainer
