#include "trainer/job.h"

#include <algorithm>

#include "core/log.h"
#include "data/audit.h"
#include "export/provenance.h"
#include "io/file.h"
#include "models/int8_linears.h"
#include "trainer/int8_compute.h"
#include "trainer/offload.h"
#include "trainer/step.h"

namespace shardtune::trainer {
namespace {

adapters::FrontTokens front_tokens(const Job& job) {
  return job.config.adapter.options->front_tokens();
}

/// The template, or null where none is needed: raw completions and plain text.
std::unique_ptr<data::ChatTemplate> choose_template(const Job& job) {
  const std::string& name = job.config.data.chat_template;
  if (name == "none" || job.config.training.objective == "pretrain")
    return nullptr;
  try {
    return data::make_chat_template(name, *job.tokenizer);
  } catch (const UnsupportedError&) {
    // A model without a known template still trains on plain text.
    for (const auto* files : {&job.config.data.train, &job.config.data.eval}) {
      for (const data::DatasetFile& file : *files) {
        const auto records = data::read_records(file);
        const bool plain = std::all_of(records.begin(), records.end(), [](const auto& record) {
          return record.messages.empty() && !record.raw;
        });
        if (!plain)
          throw;
      }
    }
    return nullptr;
  }
}

data::Dataset load_files(const Job& job, const std::vector<data::DatasetFile>& files) {
  data::DatasetOptions options;
  options.files = files;
  options.train_on = job.config.data.train_on;
  options.max_length = job.config.data.max_length - front_tokens(job).rows;
  return data::load_dataset(options, *job.tokenizer, job.chat.get());
}

void warn_truncated(const data::Dataset& dataset, const char* name, int64_t max_length) {
  const data::DatasetStats& stats = dataset.stats;
  if (stats.num_truncated == 0)
    return;
  log_warning(std::string("data.") + name + ": " + std::to_string(stats.num_truncated) + " of " +
              std::to_string(stats.num_samples) + " samples are longer than data.max_length (" +
              std::to_string(max_length) + ") and were cut; " +
              std::to_string(stats.num_truncated_answers) + " of them lost the end of the answer");
}

void make_plan(Job& job) {
  const TrainingSection& training = job.config.training;
  job.plan = std::make_unique<data::DataPlan>(job.train_set.samples, plan_options(job.config));
  job.total_steps = training.max_steps > 0 ? training.max_steps
                                           : job.plan->total_steps(training.num_train_epochs);
  job.last_step = training.stop_at_step > 0 ? std::min(job.total_steps, training.stop_at_step)
                                            : job.total_steps;
  optim::ScheduleOptions schedule;
  schedule.type = training.lr_scheduler_type;
  schedule.learning_rate = training.learning_rate;
  schedule.total_steps = job.total_steps;
  schedule.warmup_steps =
      optim::resolve_warmup_steps(job.total_steps, training.warmup_steps, training.warmup_ratio);
  job.schedule = std::make_unique<optim::Schedule>(schedule);
}

std::string digest_of(const data::Dataset& train, const data::Dataset& eval) {
  io::Sha256 sha256;
  for (const data::Dataset* dataset : {&train, &eval}) {
    for (const data::Sample& sample : dataset->samples) {
      const uint64_t head[] = {sample.id, sample.ids.size()};
      sha256.update(std::as_bytes(std::span<const uint64_t>(head)));
      sha256.update(std::as_bytes(std::span<const int32_t>(sample.ids)));
      sha256.update(std::as_bytes(std::span<const uint8_t>(sample.trained)));
    }
  }
  return sha256.hex_digest();
}

void check_context(const Job& job) {
  const int64_t context = job.source->config().max_position_embeddings;
  if (context > 0 && job.config.data.max_length > context) {
    throw ConfigError("data.max_length: expected at most " + std::to_string(context) +
                      " (the context of " + job.source->path() + "), found " +
                      std::to_string(job.config.data.max_length) +
                      ". Write 'max_length: " + std::to_string(context) + "'.");
  }
  const adapters::FrontTokens front = front_tokens(job);
  const int64_t max_length = job.config.data.max_length;
  if (front.positions > 0 && front.positions >= max_length) {
    throw ConfigError("adapter.num_virtual_tokens: expected less than data.max_length (" +
                      std::to_string(max_length) + "), found " + std::to_string(front.positions) +
                      ". Give fewer virtual tokens or a larger data.max_length.");
  }
  // What stands beside the rows of the batch takes positions of its own.
  const int64_t beside = front.positions - front.rows;
  if (context > 0 && max_length + beside > context) {
    throw ConfigError("data.max_length: expected at most " + std::to_string(context - beside) +
                      " (the model's context of " + std::to_string(context) +
                      " without the adapter's " + std::to_string(beside) +
                      " virtual tokens), found " + std::to_string(max_length) +
                      ". Write 'max_length: " + std::to_string(context - beside) + "'.");
  }
}

/// Every data file says which of the adapter's tasks it is of.
void check_tasks(const Job& job) {
  const int64_t tasks = front_tokens(job).tasks;
  for (const auto* files : {&job.config.data.train, &job.config.data.eval}) {
    for (const data::DatasetFile& file : *files) {
      const std::string where = "data: " + file.path + ": task_id: ";
      if (tasks == 0 && file.task_id >= 0)
        throw ConfigError(where + "has no effect with adapter.method '" +
                          std::string(job.config.adapter.options->method()) + "'. Leave it out.");
      if (tasks > 1 && file.task_id < 0)
        throw ConfigError(where + "expected one of the adapter's " + std::to_string(tasks) +
                          " tasks, found none. Write for example 'task_id: 0'.");
      if (tasks > 0 && file.task_id >= tasks)
        throw ConfigError(where + "expected less than adapter.num_tasks (" + std::to_string(tasks) +
                          "), found " + std::to_string(file.task_id) + ".");
    }
  }
}

}  // namespace

data::PlanOptions plan_options(const RunConfig& config) {
  data::PlanOptions options;
  options.packing = config.data.packing ? data::Packing::kPacked : data::Packing::kOneSamplePerRow;
  options.max_length = config.data.max_length;
  options.micro_batch_size = config.training.micro_batch_size;
  options.global_batch_size = config.training.global_batch_size;
  options.seed = config.training.seed;
  options.num_virtual_tokens = config.adapter.options->front_tokens().rows;
  return options;
}

void read_data(Job& job) {
  const RunConfig& config = job.config;
  job.source = models::open_model_source(config.model.model_name_or_path);
  check_context(job);
  check_tasks(job);
  job.tokenizer = data::load_tokenizer(config.model.model_name_or_path);
  job.chat = choose_template(job);
  job.train_set = load_files(job, config.data.train);
  if (config.data.eval_split > 0.0)
    job.eval_set = data::split_off(job.train_set, config.data.eval_split, config.training.seed);
  warn_truncated(job.train_set, "train", config.data.max_length);
  if (!config.data.eval.empty()) {
    job.eval_set = load_files(job, config.data.eval);
    warn_truncated(job.eval_set, "eval", config.data.max_length);
  }
  make_plan(job);
  job.config.adapter.options->check_total_steps(job.total_steps);
}

void require_trainable(const Job& job) {
  // Texts that are pretrained on may go on; an answer has to end.
  if (job.config.training.objective == "pretrain")
    return;
  data::require_trained_end(job.train_set, *job.tokenizer, "data.train",
                            job.config.data.max_length);
}

void check_inputs(Job& job) {
  check_offload(job);
  job.compute_dtype = resolve_compute_dtype(job.config.model.compute_dtype);
  read_data(job);
  require_trainable(job);
  job.objective = objectives::objectives().at(job.config.training.objective)();
}

void agree_on_inputs(Job& job, const std::string& identity) {
  parallel::Communicator& comm = job.comm;
  parallel::check_same_on_all_ranks(comm, "program version, instruction set and libraries",
                                    identity);
  const auto hashes = comm.all_gather_strings(config_hash(job.config));
  if (std::any_of(hashes.begin(), hashes.end(),
                  [&](const std::string& hash) { return hash != hashes[0]; })) {
    // Key by key, so that the message names the one that differs.
    const auto keys = resume_keys(job.config);
    parallel::check_same_on_all_ranks(comm, "number of configuration keys",
                                      std::to_string(keys.size()));
    for (const auto& [key, value] : keys)
      parallel::check_same_on_all_ranks(comm, key, value);
    parallel::check_same_on_all_ranks(comm, "configuration", resolved_text(job.config));
  }
  parallel::check_same_on_all_ranks(comm, "tokens of the data files",
                                    digest_of(job.train_set, job.eval_set));
}

void agree_on_base(Job& job) {
  parallel::Communicator& comm = job.comm;
  // The ranks of one host read one file: its first rank hashes it.
  const bool hashes_base = comm.local_rank() == 0;
  const auto bases = comm.all_gather_strings(hashes_base ? job.source->content_hash() : "");
  job.base_sha256 = bases[0];
  for (size_t rank = 0; rank < bases.size(); ++rank) {
    if (!bases[rank].empty() && bases[rank] != job.base_sha256) {
      throw RankMismatchError("model.model_name_or_path: expected the same weights on all ranks (" +
                              job.base_sha256.substr(0, 16) + " on rank 0), found " +
                              bases[rank].substr(0, 16) + " on rank " + std::to_string(rank) +
                              ". Copy one model to all hosts.");
    }
  }
  const std::string folder = job.config.adapter.options->start_folder();
  if (folder.empty())
    return;
  const auto trained = exporting::read_provenance(folder);
  if (!trained)
    return;
  exporting::check_base(*trained, folder, job.config.model.model_name_or_path, job.base_sha256);
  if (trained->merge_aware)
    throw UnsupportedError("adapter.adapter_name_or_path: " + folder +
                           " was trained merge-aware, which does not go on in another run yet. "
                           "Resume its run from a checkpoint, with more max_steps.");
}

void forward_sample(models::Model& model, const TokenBatch& sample, models::Hooks& hooks) {
  models::ForwardOptions options;
  options.context.batch = &sample;
  options.hooks = {&hooks};
  model.store().begin_walk(model.forward_units());
  {
    autograd::Tape tape(model.store(), autograd::Recording::kOff);
    model.forward(tape, options);
  }
  model.store().end_walk();
}

namespace {

/// What an adapter's initial values may depend on.
void with_start(Job& job, const std::function<void(const adapters::InitContext&)>& use) {
  adapters::InitContext start(job.config.training.seed);
  start.source = job.source.get();
  start.encode = [&job](const std::string& text) { return job.tokenizer->encode(text, {}); };
  const TokenBatch sample =
      data::collate(job.train_set.samples, calibration_samples(job.train_set.samples));
  start.sample = &sample;
  start.forward = [&](models::Hooks& hooks) {
    run_walk(job, [&] { forward_sample(*job.model, sample, hooks); });
  };
  use(start);
}

void load_base(Job& job) {
  const RunConfig& config = job.config;
  open_base_file(job);
  job.store = std::make_unique<parallel::ShardedParameterStore>(
      job.comm, config.parallel.stage,
      parallel::FrozenStorage{.max_held_bytes = parallel::kMaxHeldBytes,
                              .file = job.base_file.get(),
                              .sharing = config.parallel.base_sharing});
  models::LoadOptions options;
  options.quantization = config.quantization;
  options.compute_dtype = job.compute_dtype;
  options.trained = config.adapter.options->trained_base(job.source->config());
  job.model = models::load_model(*job.source, *job.store, options);
  if (config.model.computes_in_int8())
    models::enable_int8(*job.model);
}

/// The base that a sample of the data goes through has no place for an adapter yet.
std::unique_ptr<adapters::AdapterOptions> fit_to_data(Job& job) {
  load_base(job);
  job.store->seal();
  std::unique_ptr<adapters::AdapterOptions> fitted;
  with_start(job, [&](const adapters::InitContext& start) {
    fitted = job.config.adapter.options->fitted_to_data(*job.model, start);
  });
  job.model.reset();
  job.store.reset();
  job.base_file.reset();
  return fitted;
}

}  // namespace

void load(Job& job, const CheckpointState* start) {
  const adapters::AdapterOptions* options = job.config.adapter.options.get();
  const bool has_fitted = options->from_data() == adapters::AdapterOptions::FromData::kShapes;
  std::unique_ptr<adapters::AdapterOptions> fitted;
  if (has_fitted && start == nullptr)
    fitted = fit_to_data(job);
  load_base(job);
  if (has_fitted && start != nullptr)
    fitted = options->fitted_as(*job.model, start->hook_state);
  job.adapter = (has_fitted ? *fitted : *options).attach(*job.model);
  job.adapter->set_total_steps(job.total_steps);
  job.store->seal();
  log_base_file(job);
  job.adapter->keep_base(*job.source, [&job](const models::BaseLinear& linear) {
    return job.store->is_publisher(linear.weight().components().front());
  });
  if (const std::string folder = options->start_folder(); !folder.empty()) {
    adapters::read_adapter_values(folder, *job.adapter, *job.model);
  } else {
    with_start(job,
               [&](const adapters::InitContext& context) { job.adapter->initialize(context); });
  }
  make_optimizer_states(job);
  job.states->set_hooks(*job.adapter);
  job.states->scale_learning_rates(
      [&job](ParameterId id) { return job.adapter->learning_rate_scale(id); });
}

models::ForwardOptions forward_options(const Job& job, int64_t step) {
  models::ForwardOptions options;
  options.context.mode = models::Mode::kTraining;
  options.context.seed = job.config.training.seed;
  options.context.step = step;
  options.hooks = {job.adapter.get()};
  options.gradient_checkpointing = job.config.training.gradient_checkpointing;
  return options;
}

}  // namespace shardtune::trainer
