#include "trainer/train.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "core/log.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "export/peft_adapter.h"
#include "export/provenance.h"
#include "io/file.h"
#include "trainer/collective.h"
#include "trainer/job.h"
#include "trainer/loop.h"
#include "trainer/memory.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/signals.h"
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
           " threads, " + std::string(name_of(job.compute_dtype)) + ", ZeRO stage " +
           std::to_string(static_cast<int>(job.config.parallel.stage)));
  for (const std::string& notice : job.config.notices)
    log_warning(notice);
}

/// Files of the run directory that a start renews. Rank 0.
void open_run_files(const Job& job, RunFolder& folder, int64_t first_step) {
  io::write_file_durably(folder.path() / "resolved_config.yaml", resolved_text(job.config));
  folder.open_metrics(first_step);
}

/// `trained`: the trainables, whole. Rank 0.
std::string export_adapter(const Job& job, const std::vector<NamedTensor>& trained,
                           const fs::path& output_dir, int64_t steps) {
  exporting::Provenance provenance;
  provenance.base_model = job.config.model.model_name_or_path;
  provenance.base_sha256 = job.base_sha256;
  provenance.quantization = job.config.quantization;
  provenance.compute_dtype = std::string(name_of(job.compute_dtype));
  provenance.chat_template = job.chat == nullptr ? "" : std::string(job.chat->name());
  provenance.trained_steps = steps;
  const fs::path folder = output_dir / "adapter";
  const exporting::AdapterValues values = [&](const adapters::AdapterTensor& tensor,
                                              const auto& use) {
    const auto found = std::ranges::find(trained, tensor.name, &NamedTensor::name);
    SHARDTUNE_ASSERT(found != trained.end());
    use(TensorView(found->values.data(), DType::kFloat32, tensor.shape));
  };
  exporting::write_peft_adapter(*job.adapter, values, folder, provenance,
                                exporting::Existing::kReplace);
  return folder.string();
}

std::string mebibytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

void log_shards(const Job& job) {
  const parallel::StoreMemory memory = job.store->memory();
  if (memory.unit_bytes == 0 || job.base_file != nullptr)
    return;  // with a file, offload_param tells its size
  int64_t whole = 0;
  for (int32_t i = 0; i < job.store->num_parameters(); ++i) {
    const ParameterSpec& spec = job.store->spec(ParameterId{i});
    if (spec.kind == ParameterKind::kFrozen)
      whole += spec.shape.numel() * size_of(spec.dtype);
  }
  log_info("stage 3: rank 0 holds " + mebibytes(memory.base_bytes) + " of the base's " +
           mebibytes(whole) + "; units are gathered one ahead into two buffers of " +
           mebibytes(memory.unit_bytes / 2));
}

/// Load, restore, probe: everything up to the first step.
void prepare(Job& job, const std::optional<Checkpoint>& start) {
  load(job);
  log_shards(job);
  if (start)
    restore(job, *start);
  const int64_t first_step = start ? start->step : 0;
  const int64_t before_probe = BufferPool::process().bytes_in_use();
  const int64_t unit_bytes = job.store->memory().unit_bytes;
  if (first_step < job.last_step)
    probe_longest_micro_batch(job, first_step);
  // Buffers of units that stayed leased are a row of their own, no activations.
  log_memory_table(job, before_probe + job.store->memory().unit_bytes - unit_bytes);
}

TrainResult run_job(Job& job, const TrainOptions& options, const std::function<int()>& signal) {
  RunFolder folder(job.comm, job.config.checkpoint.output_dir);
  if (job.comm.rank() == 0)
    log_to_file((folder.path() / "train.log").string());
  log_job(job);
  const std::optional<Checkpoint> start = choose_start(job, folder, options);
  const int64_t first_step = start ? start->step : 0;
  run_on_rank_zero(job.comm, [&] {
    open_run_files(job, folder, first_step);
    return std::string();
  });
  prepare(job, start);

  Loop loop(job, folder, options, first_step);
  if (start)
    loop.result().resumed_from = first_step;
  loop.run(signal);
  TrainResult& result = loop.result();
  result.peak_rss_bytes = job.comm.all_reduce_max(peak_rss_bytes());
  result.finished = result.steps >= job.total_steps;
  if (!result.finished)
    return result;
  if (!job.eval_set.samples.empty() && !result.has_eval)
    loop.evaluate();
  const std::vector<NamedTensor> trained = read_trainables(*job.store, job.comm);
  result.adapter_folder = run_on_rank_zero(
      job.comm, [&] { return export_adapter(job, trained, folder.path(), result.steps); });
  log_info("wrote " + result.adapter_folder);
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
  Job job(config, comm);
  job.swap = options.swap;
  check_inputs(job);
  agree_on_inputs(job, options.identity);
  comm.set_config_word(mix_key(0, config_hash(config)));
  if (options.dry_run) {
    log_job(job);
    TrainResult result;
    result.total_steps = job.total_steps;
    return result;
  }
  return run_job(job, options, [&] { return signals ? signals->received() : 0; });
}

}  // namespace shardtune::trainer
