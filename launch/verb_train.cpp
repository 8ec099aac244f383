// train: the only verb that runs on several ranks.
#include <cstdlib>
#include <optional>

#include "core/log.h"
#include "core/parallel_for.h"
#include "launch/build_info.h"
#include "launch/command_line.h"
#include "launch/failure.h"
#include "launch/output.h"
#include "launch/verbs.h"
#include "parallel/communicator.h"
#include "trainer/config.h"
#include "trainer/plan_text.h"
#include "trainer/train.h"

namespace shardtune::launch {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume;
  bool dry_run = false;
  bool json = false;
};

trainer::RunConfig load_config_on_all_ranks(const TrainArguments& arguments,
                                            parallel::Communicator& comm) {
  std::optional<trainer::RunConfig> config;
  Failure failure{ExitCode::kOk, ""};
  try {
    config = trainer::load_config(arguments.config, arguments.overrides);
  } catch (const Error&) {
    failure = current_failure();
  }
  // An error of one rank is told before any other rank waits for it in a later collective.
  comm.all_reduce_max(failure.code == ExitCode::kOk ? 0 : 1);
  if (failure.code != ExitCode::kOk)
    throw Error(failure.code, failure.message);
  return std::move(*config);
}

io::Json list_of(const std::vector<int64_t>& values) {
  io::Json list = io::Json::array();
  for (const int64_t value : values)
    list.push_back(value);
  return list;
}

io::Json result_json(const trainer::TrainResult& result) {
  io::Json json = io::Json::object();
  json.set("ready_seconds", result.ready_seconds);
  json.set("steps", result.steps);
  json.set("total_steps", result.total_steps);
  json.set("resumed_from", result.resumed_from >= 0 ? io::Json(result.resumed_from) : io::Json());
  json.set("finished", result.finished);
  json.set("final_loss", result.final_loss);
  json.set("eval_loss", result.has_eval ? io::Json(result.eval_loss) : io::Json());
  json.set("tokens_per_second", result.tokens_per_second);
  json.set("peak_rss_bytes", result.peak_rss_bytes);
  json.set("rank_peak_rss_bytes", list_of(result.rank_peak_rss_bytes));
  json.set("rank_predicted_bytes", list_of(result.rank_predicted_bytes));
  json.set("rank_held_bytes", list_of(result.rank_held_bytes));
  json.set("pool_peak_bytes", result.pool_peak_bytes);
  json.set("predicted_pool_bytes", result.predicted_pool_bytes);
  json.set("step_traffic", trainer::traffic_json(result.step_traffic));
  json.set("predicted_step_traffic", trainer::traffic_json(result.predicted_step_traffic));
  json.set("adapter", result.adapter_folder.empty() ? io::Json() : io::Json(result.adapter_folder));
  return json;
}

int train_on(parallel::Communicator& comm, const TrainArguments& arguments,
             const CommandLine& line) {
  log_configure(comm.rank(), comm.world_size(), LogLevel::kInfo);
  const trainer::RunConfig config = load_config_on_all_ranks(arguments, comm);
  line.apply_threads(config.parallel.threads);
  log_info("ranks " + std::to_string(comm.world_size()) + " x threads " +
           std::to_string(num_threads()));
  trainer::TrainOptions options;
  trainer::parse_resume(arguments.resume, options);
  options.identity = build_identity();
  options.dry_run = arguments.dry_run;
  const trainer::TrainResult result = trainer::train(config, comm, options);
  if (comm.rank() == 0 && arguments.json)
    print_json(result_json(result));
  return static_cast<int>(result.exit_code);
}

/// Ends the job on all ranks with the code of what was thrown. Stopping after a signal is no
/// failure: every rank leaves by itself.
int train_or_abort(parallel::Communicator& comm, const TrainArguments& arguments,
                   const CommandLine& line) {
  const RankInfo ranks = rank_from_environment();
  comm.on_lost_peer([ranks](const std::string& message) {
    report_lost_peer(message, ranks);
    std::_Exit(static_cast<int>(ExitCode::kPeerLost));
  });
  try {
    return train_on(comm, arguments, line);
  } catch (const PreemptedError& error) {
    if (comm.rank() == 0)
      log_warning(error.what());
    return static_cast<int>(error.exit_code());
  } catch (const parallel::LostPeerError& error) {
    report_lost_peer(error.what(), ranks);
    comm.abort(static_cast<int>(ExitCode::kPeerLost));
    std::_Exit(static_cast<int>(ExitCode::kPeerLost));
  } catch (...) {
    if (comm.world_size() == 1)
      throw;
    const Failure failure = current_failure();
    report(failure, ranks);
    leave_status(ranks, static_cast<int>(failure.code));
    comm.abort(static_cast<int>(failure.code));
    std::_Exit(static_cast<int>(failure.code));
  }
}

}  // namespace

int run_train(Arguments arguments) {
  CommandLine line("train CONFIG.yaml [--set section.key=value]... [--resume auto|never|PATH]",
                   "Fine-tunes a model as the configuration says; alone, or on every rank that "
                   "mpirun or launch/run starts.");
  line.positional("CONFIG.yaml", "the configuration; configs/ holds examples");
  line.repeated("set", "KEY=VALUE", "overrides a key, e.g. training.learning_rate=1e-4");
  line.value("resume", "WHICH",
             "auto (default): newest whole checkpoint of output_dir; never; PATH");
  line.flag("dry-run",
            "check inputs, print data and the memory plan; load no weights, write nothing");
  line.flag("json", "print the result as one JSON document");
  line.threads_option();
  if (!line.parse(arguments))
    return 0;
  TrainArguments train;
  train.config = line.required("CONFIG.yaml");
  train.overrides = line.all("set");
  train.resume = line.text_or("resume", "auto");
  train.dry_run = line.has("dry-run");
  train.json = line.has("json");
  const auto comm = parallel::make_communicator();
  return train_or_abort(*comm, train, line);
}

}  // namespace shardtune::launch
