#include "trainer/train.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <sstream>

#include "core/log.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "core/topology.h"
#include "export/peft_adapter.h"
#include "export/provenance.h"
#include "io/file.h"
#include "trainer/collective.h"
#include "trainer/int8_compute.h"
#include "trainer/job.h"
#include "trainer/loop.h"
#include "trainer/memory.h"
#include "trainer/memory_plan.h"
#include "trainer/offload.h"
#include "trainer/plan_search.h"
#include "trainer/plan_text.h"
#include "trainer/report.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/signals.h"
#include "trainer/start_times.h"
#include "trainer/step.h"

namespace shardtune::trainer {
namespace {

void log_job(const Job& job) {
  const data::DatasetStats& stats = job.train_set.stats;
  log_info("data: " + std::to_string(stats.num_samples) + " samples, " +
           std::to_string(stats.num_tokens) + " tokens, " +
           std::to_string(stats.num_trained_tokens) + " of them trained; longest sample " +
           std::to_string(stats.max_sample_tokens) + " tokens");
  log_info("plan: " + std::to_string(job.total_steps) + " steps, micro_batch_size " +
           std::to_string(job.config.training.micro_batch_size) + ", global_batch_size " +
           std::to_string(job.config.training.global_batch_size) + ", " +
           std::to_string(job.comm.world_size()) + " ranks x " + std::to_string(num_threads()) +
           " threads, " + std::string(name_of(job.compute_dtype)) +
           (job.config.model.computes_in_int8() ? " with frozen linears in int8" : "") +
           ", ZeRO stage " + std::to_string(static_cast<int>(job.config.parallel.stage)));
  for (const std::string& notice : job.config.notices)
    log_warning(notice);
}

/// Files of the run directory that a start renews. Rank 0.
void open_run_files(const Job& job, RunFolder& folder, int64_t first_step) {
  io::write_file_durably(folder.path() / "resolved_config.yaml", resolved_text(job.config));
  folder.open_metrics(first_step);
}

/// Whole values of the trainables that the saved adapter is made of: on rank 0. Collective.
std::map<ParameterId, std::vector<float>> read_saved(Job& job) {
  std::map<ParameterId, std::vector<float>> values;
  for (const ParameterId id : job.store->trainables()) {
    std::vector<float>& whole = values[id];
    if (job.comm.rank() == 0)
      whole.resize(static_cast<size_t>(job.store->spec(id).shape.numel()));
    job.store->read(id, whole);
  }
  return values;
}

/// `saved`: what the adapter is made of. Rank 0.
std::string export_adapter(const Job& job, const std::map<ParameterId, std::vector<float>>& saved,
                           const fs::path& output_dir, int64_t steps) {
  exporting::Provenance provenance;
  provenance.base_model = job.config.model.model_name_or_path;
  provenance.base_sha256 = job.base_sha256;
  provenance.quantization = job.config.quantization;
  provenance.compute_dtype =
      job.config.model.computes_in_int8() ? "int8" : std::string(name_of(job.compute_dtype));
  provenance.int8_migration = models::int8_migration(*job.model);
  provenance.chat_template = job.chat == nullptr ? "" : std::string(job.chat->name());
  provenance.merge_aware = job.config.adapter.options->merge_aware();
  provenance.trained_steps = steps;
  const fs::path folder = output_dir / "adapter";
  const exporting::AdapterValues values = [&](ParameterId id) { return saved.at(id); };
  exporting::write_peft_adapter(*job.adapter, values, folder, provenance,
                                exporting::Existing::kReplace);
  return folder.string();
}

std::string mebibytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

/// Collective.
RankPlacement placement_of(parallel::Communicator& comm) {
  return {comm.world_size(), static_cast<int>(comm.all_reduce_max(comm.local_size())),
          comm.shares_memory()};
}

void log_shards(const Job& job) {
  const parallel::StoreMemory memory = job.store->memory();
  if (memory.shared_bytes > 0)
    log_info("share_base_per_host: each host holds one base of " + mebibytes(memory.shared_bytes) +
             " for its ranks (" + std::to_string(job.comm.local_size()) + " on that of rank 0)");
  if (job.store->stage() != parallel::ZeroStage::k3 || job.comm.world_size() == 1 ||
      job.base_file != nullptr)
    return;  // with a file, offload_param tells its size
  int64_t whole = 0;
  for (int32_t i = 0; i < job.store->num_parameters(); ++i) {
    const ParameterSpec& spec = job.store->spec(ParameterId{i});
    if (spec.kind == ParameterKind::kFrozen)
      whole += spec.shape.numel() * size_of(spec.dtype);
  }
  const std::string held = "stage 3: rank 0 holds " + mebibytes(memory.base_bytes) +
                           " of the base's " + mebibytes(whole);
  log_info(held + (job.comm.shares_memory()
                       ? "; a unit's other parts are mapped one ahead from the memory of the ranks "
                         "that hold them"
                       : "; units are gathered ahead into buffers of " +
                             mebibytes(memory.unit_bytes) + " in all"));
}

/// Puts the checkpoint back; what each rank read of its tensors. Collective.
std::vector<int64_t> restore_and_tell(Job& job, CheckpointReader& checkpoint) {
  restore(job, checkpoint);
  const std::vector<int64_t> read = job.comm.all_gather_value(checkpoint.bytes_read());
  log_info("resume: of the checkpoint's " + mebibytes(checkpoint.num_bytes()) +
           " a rank read at most " + mebibytes(std::ranges::max(read)) +
           ", rank 0 everything once more to verify it");
  return read;
}

void log_lines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    log_info(line);
}

/// Plans the run and tells the plan; OutOfMemoryError on every rank when it does not fit. The
/// ranks of the fullest host and the least memory of any host count. Collective.
RunPlan plan_or_refuse(const Job& job, const ProcessBytes& process) {
  parallel::Communicator& comm = job.comm;
  HostLimit host{static_cast<int>(comm.all_reduce_max(comm.local_size())),
                 comm.all_reduce_min(usable_memory_bytes()), free_swap_space(job.config)};
  host.swap.base = comm.all_reduce_min(host.swap.base);
  host.swap.states = comm.all_reduce_min(host.swap.states);
  host.swap.is_one_disk = comm.any(host.swap.is_one_disk);
  const PlanFunction plan = plan_function(job, placement_of(comm), process);
  RunPlan own = plan(configured_choice(job.config));
  run_on_rank_zero(comm, [&] {
    if (!fits_memory(own, host))
      throw_not_fitting(job, own, plan, host);
    require_swap_space(job.config, own, host);
    log_lines(plan_table(job, own, host));
    return std::string();
  });
  return own;
}

/// What was predicted beside what was measured, for every rank. Collective.
void compare_with_plan(const Job& job, const RunPlan& plan, TrainResult& result) {
  parallel::Communicator& comm = job.comm;
  const int64_t predicted = comm.rank() == 0 ? plan.first_rank_bytes : plan.other_rank_bytes;
  result.rank_peak_rss_bytes = comm.all_gather_value(peak_rss_bytes());
  result.rank_predicted_bytes = comm.all_gather_value(predicted);
  result.peak_rss_bytes = std::ranges::max(result.rank_peak_rss_bytes);
  const parallel::StoreMemory held = job.store->memory();
  result.rank_held_bytes =
      comm.all_gather_value(held.base_bytes + held.adapter_bytes + job.states->num_bytes());
  result.pool_peak_bytes = BufferPool::process().peak_bytes_in_use();
  result.predicted_pool_bytes = plan.pool_bytes;
  result.predicted_step_traffic = plan.step_traffic;
  for (size_t rank = 0; rank < result.rank_peak_rss_bytes.size(); ++rank) {
    log_info("memory of rank " + std::to_string(rank) + ": predicted " +
             bytes_text(result.rank_predicted_bytes[rank]) + ", measured peak " +
             bytes_text(result.rank_peak_rss_bytes[rank]));
  }
}

TrainResult run_job(Job& job, const RunPlan& plan, const TrainOptions& options, StartTimes& times,
                    const std::function<int()>& signal) {
  RunFolder folder(job.comm, job.config.checkpoint.output_dir);
  if (job.comm.rank() == 0)
    log_to_file((folder.path() / "train.log").string());
  log_job(job);
  std::unique_ptr<CheckpointReader> start = choose_start(job, folder, options);
  const int64_t first_step = start ? start->state().step : 0;
  run_on_rank_zero(job.comm, [&] {
    open_run_files(job, folder, first_step);
    return std::string();
  });
  std::optional<ReportAtEnd> report;
  if (job.comm.rank() == 0)
    report.emplace(folder.path());
  load(job, start ? &start->state() : nullptr);
  log_shards(job);
  prepare_int8(job, start ? &start->state() : nullptr);
  Loop loop(job, folder, options, first_step);
  if (start) {
    loop.result().rank_resume_bytes = restore_and_tell(job, *start);
    loop.result().resumed_from = first_step;
    start.reset();  // its open files and kept blocks
  }
  times.end("base and adapter");
  loop.result().ready_seconds = times.seconds();
  if (first_step < job.last_step)
    probe_longest_micro_batch(job, first_step);
  times.end("probe of the longest micro-batch");
  log_info("start: " + times.text());
  loop.run(signal);
  TrainResult& result = loop.result();
  result.finished = result.steps >= job.total_steps;
  if (result.finished) {
    if (!job.eval_set.samples.empty() && !result.has_eval)
      loop.evaluate();
    const auto saved = read_saved(job);
    result.adapter_folder = run_on_rank_zero(
        job.comm, [&] { return export_adapter(job, saved, folder.path(), result.steps); });
    log_info("wrote " + result.adapter_folder);
  }
  compare_with_plan(job, plan, result);
  return result;
}

}  // namespace

void parse_resume(const std::string& text, TrainOptions& options) {
  options.resume = text == "auto"    ? ResumeMode::kAuto
                   : text == "never" ? ResumeMode::kNever
                                     : ResumeMode::kPath;
  options.resume_path = options.resume == ResumeMode::kPath ? text : "";
  if (text.empty())
    throw ConfigError("--resume: expected auto, never or a checkpoint folder, found nothing.");
}

TrainResult train(const RunConfig& config, parallel::Communicator& comm,
                  const TrainOptions& options) {
  std::optional<SignalGuard> signals;
  if (options.catch_signals)
    signals.emplace();
  if (config.parallel.threads > 0)
    set_num_threads(static_cast<int>(config.parallel.threads));
  comm.set_deadlines({.heartbeat_seconds = config.parallel.heartbeat_seconds,
                      .step_timeout_seconds = config.parallel.step_timeout_seconds});
  StartTimes start;
  start.end("program");
  const int64_t before_inputs = resident_bytes();
  Job job(config, comm);
  job.swap = options.swap;
  check_inputs(job);
  start.end("inputs");
  const ProcessBytes process = measure_process(job, before_inputs, placement_of(comm));
  agree_on_inputs(job, options.identity);
  comm.set_config_word(mix_key(0, config_hash(config)));
  const RunPlan plan = plan_or_refuse(job, process);
  start.end("plan");
  if (options.dry_run) {
    log_job(job);
    TrainResult result;
    result.total_steps = job.total_steps;
    result.rank_predicted_bytes = {plan.first_rank_bytes};
    return result;
  }
  agree_on_base(job);
  start.end("hash of the base");
  return run_job(job, plan, options, start, [&] { return signals ? signals->received() : 0; });
}

}  // namespace shardtune::trainer
