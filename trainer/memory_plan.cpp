#include "trainer/memory_plan.h"

#include <algorithm>
#include <map>

#include "core/checked.h"
#include "trainer/evaluate.h"
#include "trainer/int8_compute.h"
#include "trainer/memory.h"

namespace shardtune::trainer {
namespace {

using parallel::FrozenPlace;
using parallel::PlannedStore;
using parallel::StoreTraffic;
using parallel::ZeroStage;

constexpr int64_t kFloatBytes = 4;
// What a loader holds beside a tensor's bytes: rows in fp32 (quant::rows_per_slab) and absmax.
constexpr int64_t kSlabBytes = int64_t{4} << 20;
// Headers, state.json and manifest of a checkpoint: what checkpoint.cpp asks to be free.
constexpr int64_t kCheckpointExtraBytes = int64_t{1} << 20;
// Measured (docs/memory.md says how): what comes after the plan of a process (stacks of threads,
// text of a checkpoint), products of other lengths, OpenMPI 4.1 at its start, and the memory for
// each peer of a host, shared or MPI's (bench/parallel/transport_memory.cpp).
constexpr int64_t kLaterBytes = int64_t{8} << 20;
constexpr int64_t kOtherLengthsBytes = int64_t{3} << 20;
constexpr int64_t kMpiStartBytes = int64_t{10} << 20;
constexpr int64_t kMpiPeerBytes = int64_t{1} << 20;

/// A model's source for loading in a dry run: nothing is read, and drop(), the end of a tensor, is
/// where the loader's memory is highest.
class PlannedSource : public models::ModelSource {
 public:
  PlannedSource(const models::ModelSource& source, PlannedStore& store)
      : source_(source), store_(store) {}

  const models::ModelConfig& config() const override { return source_.config(); }
  const std::string& path() const override { return source_.path(); }
  bool has(const std::string& name) const override { return source_.has(name); }
  std::vector<int64_t> shape(const std::string& name) const override { return source_.shape(name); }
  int64_t file_bytes(const std::string& name) const override { return source_.file_bytes(name); }
  std::string stored_type(const std::string& name) const override {
    return source_.stored_type(name);
  }
  void check_readable(const std::string& name) const override { source_.check_readable(name); }
  void read_stored_rows(const std::string& name, int64_t, int64_t, std::byte*) const override {
    throw ArgumentError(name + ": expected no reading of weights in a plan");
  }
  void read_rows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    throw ArgumentError(name + ": expected no reading of weights in a plan");
  }
  // A rank that loads alone reads every tensor: its mapped pages, the encoded bytes and a slab
  // stand beside what the store holds by then.
  void drop(const std::string& name) const noexcept override {
    largest_published_ = std::max(largest_published_, store_.take_largest_published());
    const int64_t beside = source_.file_bytes(name) + largest_published_ + kSlabBytes;
    // What is shared is counted whole, with the rest of it to come (plan_run).
    load_bytes_ = std::max(load_bytes_, store_.loading_bytes() - store_.bytes().shared + beside);
  }
  std::string content_hash() const override { return ""; }
  std::string folder() const override { return source_.folder(); }

  int64_t load_bytes() const { return load_bytes_; }

 private:
  const models::ModelSource& source_;
  PlannedStore& store_;
  mutable int64_t largest_published_ = 0;  // so far: loads share their buffers (quant::LoadBuffers)
  mutable int64_t load_bytes_ = 0;
};

std::vector<data::Sample> cut_samples(const std::vector<data::Sample>& samples,
                                      int64_t max_length) {
  std::vector<data::Sample> cut = samples;
  for (data::Sample& sample : cut) {
    const auto length = std::min(sample.ids.size(), static_cast<size_t>(max_length));
    sample.ids.resize(length);
    sample.trained.resize(length);
  }
  return cut;
}

/// Samples and plan of a choice: the job's own, or made for it.
struct PlannedData {
  std::vector<data::Sample> cut;
  const std::vector<data::Sample>* samples = nullptr;
  std::unique_ptr<data::DataPlan> own;
  const data::DataPlan* plan = nullptr;
  int64_t last_step = 0;
};

PlannedData data_of(const Job& job, const PlanChoice& choice) {
  PlannedData data;
  const TrainingSection& training = job.config.training;
  data.samples = &job.train_set.samples;
  data.plan = job.plan.get();
  data.last_step = job.last_step;
  const bool is_cut = choice.max_length < job.config.data.max_length;
  if (!is_cut && choice.micro_batch_size == training.micro_batch_size)
    return data;
  if (is_cut) {
    data.cut = cut_samples(job.train_set.samples,
                           choice.max_length - plan_options(job.config).num_virtual_tokens);
    data.samples = &data.cut;
  }
  data::PlanOptions options = plan_options(job.config);
  options.max_length = choice.max_length;
  options.micro_batch_size = choice.micro_batch_size;
  data.own = std::make_unique<data::DataPlan>(*data.samples, options);
  data.plan = data.own.get();
  const int64_t total = training.max_steps > 0 ? training.max_steps
                                               : data.own->total_steps(training.num_train_epochs);
  data.last_step = training.stop_at_step > 0 ? std::min(total, training.stop_at_step) : total;
  return data;
}

/// The step's edge cases of a run: per number of sums that the gradient counter holds while a
/// micro-batch runs, the longest such micro-batch.
struct StepShape {
  std::map<int, data::MicroBatchPlan> longest;  // by slots
  int64_t micro_batches = 0;                    // of the largest step
  bool lengths_differ = false;                  // of any two micro-batches
};

StepShape shape_of_steps(const PlannedData& data, int ranks) {
  StepShape shape;
  int64_t rows = 0;
  for (int64_t index = 0; index < data.last_step; ++index) {
    const data::StepPlan step = data.plan->step(index);
    const auto count = static_cast<int64_t>(step.micro_batches.size());
    shape.micro_batches = std::max(shape.micro_batches, count);
    for (int64_t m = 0; m < count; ++m) {
      data::MicroBatchPlan& longest = shape.longest[PlannedStore::num_slots(m / ranks * ranks)];
      if (step.micro_batches[m].is_larger_than(longest))
        longest = step.micro_batches[m];
      shape.lengths_differ |= rows != 0 && rows != step.micro_batches[m].num_rows();
      rows = step.micro_batches[m].num_rows();
    }
  }
  return shape;
}

/// Optimizer states of a rank: in memory (buffers where they are on NVMe), and in the swap file.
struct StateBytes {
  int64_t resident = 0;
  int64_t swap = 0;
};

StateBytes state_bytes_of(const RunConfig& config, const PlannedStore& store, int rank) {
  const auto num_states = std::ssize(element_states(config));
  std::vector<StateSwap::Segment> segments;
  int64_t elements = 0;
  for (const int64_t length : store.owned_ranges(rank)) {
    segments.push_back({"", length});
    elements += length;
  }
  if (!config.parallel.offload_optimizer.is_nvme())
    return {kFloatBytes * num_states * elements, 0};
  return {StateSwap::buffer_bytes_of(segments, num_states),
          StateSwap::bytes_of(segments, num_states)};
}

/// One rank's walk: everything that the run allocates, in its order.
class Walk {
 public:
  Walk(const Job& job, const PlanChoice& choice, const RankPlacement& placement)
      : job_(job),
        choice_(choice),
        ranks_(placement.ranks),
        store_(choice.stage, 0, placement.ranks, placement.place_of(choice)),
        source_(*job.source, store_) {}

  void load() {
    models::LoadOptions options;
    options.quantization = choice_.quantization;
    options.compute_dtype = job_.compute_dtype;
    options.trained = job_.config.adapter.options->trained_base(source_.config());
    model_ = models::load_model(source_, store_, options);
    if (job_.config.model.computes_in_int8())
      models::enable_int8(*model_);
    adapter_ = job_.config.adapter.options->attach(*model_);
    store_.seal();
    adapter_->keep_base(source_, [this](const models::BaseLinear& linear) {
      return store_.would_publish(linear.weight().components().front());
    });
  }

  /// The pass over a sample that an adapter starts from.
  void see_sample(const PlannedData& data) {
    const adapters::AdapterOptions& options = *job_.config.adapter.options;
    if (options.from_data() == adapters::AdapterOptions::FromData::kNothing)
      return;
    const TokenBatch batch = data::collate(*data.samples, calibration_samples(*data.samples));
    adapters::InitContext start(job_.config.training.seed);
    start.sample = &batch;
    start.forward = [&](models::Hooks& hooks) { forward_sample(*model_, batch, hooks); };
    options.fitted_to_data(*model_, start);
  }

  /// The pass that sets the scales of int8 products.
  void prepare_int8(const PlannedData& data) {
    if (!job_.config.model.computes_in_int8())
      return;
    const TokenBatch batch = data::collate(*data.samples, calibration_samples(*data.samples));
    models::prepare_int8(*model_, batch, {}, "");
  }

  /// The run of the longest micro-batch before the first step.
  void probe(const PlannedData& data, const data::MicroBatchPlan& longest) {
    const StoreTraffic before = store_.traffic();
    store_.begin_step(ranks_);
    store_.take_brought();
    run(*data.samples, longest);
    brought_ = store_.take_brought();
    store_.cancel_step();
    probe_traffic_ = store_.traffic() - before;
  }

  /// One step that has the micro-batches of the largest and meets the longest ones.
  void step(const PlannedData& data, const StepShape& shape) {
    const StoreTraffic before = store_.traffic();
    store_.begin_step(shape.micro_batches);
    std::map<int, data::MicroBatchPlan> left = shape.longest;
    for (int64_t first = 0; first < shape.micro_batches; first += ranks_) {
      if (const auto found = left.find(PlannedStore::num_slots(first)); found != left.end()) {
        run(*data.samples, found->second);
        left.erase(found);
      } else {
        store_.begin_walk(job_.objective->train_walk(*model_));
        store_.end_walk();
      }
      store_.begin_micro_batch();
      store_.end_round(std::min<int64_t>(ranks_, shape.micro_batches - first));
    }
    store_.finish_gradients();
    store_.publish_updates();
    adapter_->renew_base();
    step_traffic_ = store_.traffic() - before;
    // Rows are the tokens' matter: every micro-batch is taken to want those of the longest.
    const int64_t rounds = ceil_div(shape.micro_batches, int64_t{ranks_});
    step_traffic_.rows = {rounds * probe_traffic_.rows.sent, rounds * probe_traffic_.rows.received};
    step_traffic_.rows_read = rounds * probe_traffic_.rows_read;
  }

  void evaluate() {
    const std::vector<data::Sample>& samples = job_.eval_set.samples;
    data::MicroBatchPlan longest;
    for (auto& plan : data::plan_evaluation(samples, EvaluateOptions{}.max_tokens,
                                            adapter_->num_virtual_tokens())) {
      if (plan.is_larger_than(longest))
        longest = std::move(plan);
    }
    if (longest.num_tokens == 0)
      return;
    const TokenBatch batch = data::collate(samples, longest);
    models::ForwardOptions options;
    options.context.batch = &batch;
    options.hooks = {adapter_.get()};
    store_.begin_walk(job_.objective->evaluate_walk(*model_));
    job_.objective->evaluate(*model_, options);
    store_.end_walk();
  }

  const PlannedStore& store() const { return store_; }
  const parallel::BroughtBytes& brought() const { return brought_; }
  int64_t load_bytes() const { return source_.load_bytes(); }
  const StoreTraffic& step_traffic() const { return step_traffic_; }

 private:
  void run(const std::vector<data::Sample>& samples, const data::MicroBatchPlan& micro_batch) {
    const TokenBatch batch = data::collate(samples, micro_batch);
    models::ForwardOptions options;
    options.context.batch = &batch;
    options.context.mode = models::Mode::kTraining;
    options.hooks = {adapter_.get()};
    options.gradient_checkpointing = choice_.gradient_checkpointing;
    store_.begin_walk(job_.objective->train_walk(*model_));
    store_.begin_micro_batch();
    job_.objective->train(*model_, options, 1.0f);
    store_.end_walk();
  }

  const Job& job_;
  const PlanChoice& choice_;
  int ranks_;
  PlannedStore store_;
  PlannedSource source_;
  parallel::BroughtBytes brought_;  // for the longest micro-batch
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<adapters::Adapter> adapter_;
  StoreTraffic probe_traffic_;
  StoreTraffic step_traffic_;
};

/// What the ranks of the first host send to other hosts in a step, gathered bytes once to each host
/// (PERFORMANCE section 2): leaves to their owners in every round, the finished gradient at stages
/// 0 and 1, new weights at stages 1 and 2; at stage 3 units instead, as often as a walk brings
/// them, and rows to each rank that wants them.
int64_t host_sent_bytes_per_step(const Walk& walk, const RunPlan& plan, int num_ranks) {
  const PlannedStore& store = walk.store();
  const ZeroStage stage = plan.choice.stage;
  const int64_t num_other_hosts = ceil_div(plan.ranks, num_ranks) - 1;
  int64_t bytes = 0;
  for (int64_t first = 0; first < plan.micro_batches_per_step; first += plan.ranks) {
    const int64_t num_leaves = std::min<int64_t>(plan.ranks, plan.micro_batches_per_step - first);
    bytes += store.sent_leaves(num_ranks, num_leaves);
    const int64_t others = std::max<int64_t>(0, num_leaves - num_ranks);
    bytes += walk.brought().units * num_ranks / plan.ranks * num_other_hosts +
             walk.brought().rows * others * num_ranks / plan.ranks;
  }
  if (stage == ZeroStage::k0 || stage == ZeroStage::k1)
    bytes += store.sent_shards(num_ranks, num_other_hosts);
  if (stage == ZeroStage::k1 || stage == ZeroStage::k2)
    bytes += store.sent_shards(num_ranks, num_other_hosts);
  return bytes;
}

/// The most while loading beside what the process holds before it.
int64_t load_bytes(const Job& job, const Walk& walk) {
  int64_t most = walk.load_bytes();
  const auto& parallel = job.config.parallel;
  if (parallel.offload_param.is_nvme())
    most = std::max(most, io::SwapFile::kMeasureBytes);
  if (parallel.offload_optimizer.is_nvme())
    most = std::max(most, walk.store().bytes().pooled() + io::SwapFile::kMeasureBytes);
  return most;
}

void add_disk(const Job& job, int64_t last_step, int64_t adapter_bytes, int64_t state_bytes,
              RunPlan& plan) {
  const CheckpointSection& checkpoint = job.config.checkpoint;
  plan.checkpoint_bytes = adapter_bytes + state_bytes + kCheckpointExtraBytes;
  const int64_t saves = checkpoint.save_steps > 0 ? ceil_div(last_step, checkpoint.save_steps) : 1;
  // The oldest goes after the newest is there.
  plan.num_checkpoints =
      checkpoint.save_total_limit > 0 ? std::min(saves, checkpoint.save_total_limit + 1) : saves;
  plan.disk_bytes =
      checked_add(checked_mul(plan.num_checkpoints, plan.checkpoint_bytes), adapter_bytes);
}

/// Whether a checkpoint can be under way while later steps run; the last one is saved after them.
bool saves_beside_steps(const Job& job, int64_t last_step) {
  const int64_t every = job.config.checkpoint.save_steps;
  return every > 0 && every < last_step;
}

/// What the pool covers beyond the buffers in use at its peak. The walk knows one length of
/// micro-batches; others leave buffers of their own sizes, up to what the pool always keeps.
int64_t kept_for_reuse(const DryRun& dry_run, int64_t in_use, bool lengths_differ) {
  const int64_t walked = dry_run.peak_bytes() - dry_run.beside_pool_at_peak() - in_use;
  return lengths_differ ? std::max(walked, BufferPool::kAlwaysKeptBytes) : walked;
}

/// The rows of a rank.
void add_rows(const PlannedStore& store, const DryRun& dry_run, const ProcessBytes& process,
              int64_t state_bytes, bool lengths_differ, RunPlan& plan) {
  const auto& peak = dry_run.bytes_at_peak();
  const auto of = [&](Purpose purpose) { return peak[static_cast<size_t>(purpose)]; };
  const parallel::ParameterBytes& bytes = store.bytes();
  int64_t in_use = 0;
  for (const int64_t part : peak)
    in_use += part;
  const auto add = [&](const char* name, int64_t count) {
    if (count != 0)
      plan.rows.push_back({name, count});
  };
  add("program and libraries", process.program + (lengths_differ ? kOtherLengthsBytes : 0));
  add("communication between ranks", process.transport);
  add("tokenizer and data", process.inputs);
  add("base: quantised codes", bytes.codes);
  add("base: scales", bytes.scales);
  add("base: dense (norms, embedding, head)", bytes.dense);
  add("base: weights kept for merge_aware", of(Purpose::kKeptBase));
  add("int8 products: scales of frozen linears", of(Purpose::kInt8Scales));
  add("adapters: fp32 master weights", bytes.master);
  add("adapters: bf16 copies", bytes.bf16);
  add("units gathered or read ahead", bytes.gather + dry_run.beside_pool_at_peak());
  add("gradients", of(Purpose::kParameters) - bytes.pooled());
  add("optimizer states", state_bytes);
  add("activations", of(Purpose::kActivations));
  add("attention workspace", of(Purpose::kAttention));
  add("head: logits and gradient", of(Purpose::kHead));
  add("dequantised weight", of(Purpose::kDequantised));
  add("products: workspace", of(Purpose::kProducts));
  add("buffers kept for reuse", kept_for_reuse(dry_run, in_use, lengths_differ));
}

}  // namespace

PlanChoice configured_choice(const RunConfig& config) {
  const ParallelSection& parallel = config.parallel;
  const bool shares = parallel.base_sharing == parallel::BaseSharing::kPerHost;
  return {parallel.stage,
          config.training.gradient_checkpointing,
          config.training.micro_batch_size,
          config.data.max_length,
          config.quantization,
          parallel.offload_param.is_nvme() ? FrozenPlace::kNvme
          : shares                         ? FrozenPlace::kHost
                                           : FrozenPlace::kMemory,
          std::max(PlanChoice{}.shortest_length, plan_options(config).num_virtual_tokens + 2)};
}

PlanChoice PlanChoice::at_stage(ZeroStage other) const {
  PlanChoice choice = *this;
  choice.stage = other;
  if (other == ZeroStage::k3 && base == FrozenPlace::kHost)
    choice.base = FrozenPlace::kMemory;
  return choice;
}

FrozenPlace RankPlacement::place_of(const PlanChoice& choice) const {
  const bool maps = choice.stage == ZeroStage::k3 && choice.base == FrozenPlace::kMemory &&
                    ranks > 1 && ranks_of_host >= ranks && shares_memory;
  return maps ? FrozenPlace::kHost : choice.base;
}

RunPlan plan_run(const Job& job, const PlanChoice& choice, const RankPlacement& placement,
                 const ProcessBytes& process) {
  const int ranks = placement.ranks;
  RunPlan plan;
  plan.choice = choice;
  plan.ranks = ranks;
  const PlannedData data = data_of(job, choice);
  const StepShape shape = shape_of_steps(data, ranks);
  const data::MicroBatchPlan probe = data.plan->longest_micro_batch(data.last_step);
  plan.longest_tokens = probe.num_rows();
  plan.micro_batches_per_step = shape.micro_batches;

  DryRun dry_run;
  Walk walk(job, choice, placement);
  walk.load();
  walk.see_sample(data);
  walk.prepare_int8(data);
  walk.probe(data, probe);
  // What the pool keeps in a step depends on the step before.
  for (int64_t step = 0; step < std::min<int64_t>(2, data.last_step); ++step)
    walk.step(data, shape);
  walk.evaluate();

  const PlannedStore& store = walk.store();
  const auto num_states = std::ssize(element_states(job.config));
  const StateBytes states = state_bytes_of(job.config, store, 0);
  const int64_t adapter_bytes = kFloatBytes * store.num_trainable_elements();
  add_rows(store, dry_run, process, states.resident, shape.lengths_differ, plan);
  for (const MemoryRow& row : plan.rows)
    plan.run_bytes += row.bytes;
  plan.other_rank_bytes = plan.run_bytes;
  // Rank 0 holds whole tensors of all ranks while it saves; what only steps need is gone after the
  // last one.
  int64_t saving_bytes = adapter_bytes * (1 + num_states);
  dry_run.trim();  // as the run does before the last save
  if (!saves_beside_steps(job, data.last_step))
    saving_bytes -= std::min(saving_bytes, dry_run.peak_bytes() - dry_run.bytes_now());
  plan.rows.push_back({"checkpoint under way (rank 0)", saving_bytes});
  plan.run_bytes += saving_bytes;
  plan.shared_bytes = store.bytes().shared + store.peak_foreign_bytes();
  const int64_t before_load = process.program + process.transport + process.inputs;
  plan.load_bytes = before_load + load_bytes(job, walk) + store.bytes().shared;
  plan.first_rank_bytes = std::max(plan.run_bytes, plan.load_bytes);
  plan.other_rank_bytes = std::max(plan.other_rank_bytes, plan.load_bytes);
  plan.pool_bytes = dry_run.pool().peak_bytes_in_use();
  plan.step_traffic = {walk.step_traffic(), states.swap, states.swap};
  if (placement.ranks_of_host < ranks)
    plan.host_sent_bytes_per_step = host_sent_bytes_per_step(walk, plan, placement.ranks_of_host);
  add_disk(job, data.last_step, adapter_bytes, adapter_bytes * num_states, plan);
  for (int rank = 0; rank < ranks; ++rank)
    plan.swap.push_back({store.swap_bytes(rank), state_bytes_of(job.config, store, rank).swap});
  return plan;
}

SwapBytes RunPlan::host_swap(int ranks_of_host) const {
  SwapBytes total, largest;
  for (const SwapBytes& own : swap) {
    total = {total.base + own.base, total.states + own.states};
    largest = {std::max(largest.base, own.base), std::max(largest.states, own.states)};
  }
  if (ranks_of_host >= ranks)
    return total;
  return {ranks_of_host * largest.base, ranks_of_host * largest.states};
}

ProcessBytes measure_process(const Job& job, int64_t before_inputs,
                             const RankPlacement& placement) {
  const int ranks = placement.ranks;
  ProcessBytes process;
  const int64_t with_inputs = resident_bytes();
  process.inputs = std::max<int64_t>(0, with_inputs - before_inputs);
  plan_run(job, configured_choice(job.config), placement, {});
  process.program = resident_bytes() - process.inputs + kLaterBytes;
  if (ranks > 1)
    process.transport = (ranks - 1) * kMpiPeerBytes;
  if (ranks > 1 && !parallel::started_by_mpi())
    process.transport += kMpiStartBytes;
  return process;
}

}  // namespace shardtune::trainer
