#include "parallel/sharded_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/checked.h"
#include "kernels/elementwise.h"
#include "parallel/gradient_accumulator.h"
#include "parallel/unit_walk.h"

namespace shardtune::parallel {

ZeroStage zero_stage_from(int64_t number) {
  if (number < 0 || number > 3)
    throw ConfigError(
        fmt::format("parallel.zero_optimization.stage: expected 0, 1, 2 or 3, found {}", number));
  return static_cast<ZeroStage>(number);
}

namespace {
// One rank has nothing to share: its units stay whole at every stage.
std::unique_ptr<UnitResidency> make_residency(Communicator& comm, const ParameterTable& table,
                                              ZeroStage stage, const FrozenStorage& storage) {
  if (storage.sharing == BaseSharing::kPerHost) {
    if (stage == ZeroStage::k3 || storage.file != nullptr)
      throw ArgumentError("a base shared per host: expected stage 0, 1 or 2 and no file");
    return make_host_residency(comm, table, stage);
  }
  if (stage == ZeroStage::k3 && comm.shares_memory() && storage.file == nullptr)
    return make_mapped_residency(comm, table, storage.max_held_bytes);
  if (stage == ZeroStage::k3 && comm.world_size() > 1)
    return make_sharded_residency(comm, table, storage);
  return storage.file == nullptr ? make_whole_residency(comm, table, stage)
                                 : make_nvme_residency(comm, table, stage, storage);
}
}  // namespace

struct ShardedParameterStore::State {
  State(Communicator& comm, ZeroStage stage, const FrozenStorage& storage)
      : table(comm.world_size()),
        residency(make_residency(comm, table, stage, storage)),
        walk(table, *residency) {}

  ParameterTable table;
  std::unique_ptr<UnitResidency> residency;
  UnitWalk walk;
  std::vector<uint8_t> published;  // by parameter

  bool sealed = false;
  ShardLayout shards;
  FlatLayout flat;
  Tensor gradient;              // flat at stages 0 and 1, this rank's shard above
  int64_t gradient_origin = 0;  // flat element that `gradient` begins with
  std::optional<GradientAccumulator> accumulator;
  std::vector<Segment> segments;
  bool gradients_finished = false;
  StoreTraffic moved;  // gradients and weights

  void require_sealed(std::string_view call) const {
    if (!sealed)
      throw ArgumentError(fmt::format("{}: expected seal() before it", call));
  }

  /// For what talks to the other ranks.
  void require_between_walks(std::string_view call) const {
    require_sealed(call);
    walk.require_closed(call);
  }

  const DeclaredParameter& leased(ParameterId id, std::string_view call) const {
    const DeclaredParameter& parameter = table.at(id);
    if (!walk.is_leased(parameter.spec.unit))
      throw ArgumentError(fmt::format(
          "{}('{}'): its unit '{}' is not leased. Keep the lease of acquire() while the view is "
          "used.",
          call, parameter.spec.name, table.unit(parameter.spec.unit).name));
    require_published(id, call);
    return parameter;
  }

  void require_published(ParameterId id, std::string_view call) const {
    const auto index = static_cast<size_t>(id);
    if (index >= published.size() || published[index] == 0)
      throw ArgumentError(
          fmt::format("{}('{}'): nothing was published", call, table.at(id).spec.name));
  }

  void set_published(ParameterId id) {
    published.resize(static_cast<size_t>(table.num_parameters()));
    published[static_cast<size_t>(id)] = 1;
  }

  std::span<float> gradient_of(int64_t flat_begin, int64_t flat_end) const {
    if (flat_begin == flat_end)
      return {};
    return elements_of(gradient.span<float>(), flat_begin - gradient_origin,
                       flat_end - gradient_origin);
  }

  void build_segments(ZeroStage stage, int rank) {
    const HeldWeights held = residency->weights();
    for (const ShardRange& range :
         stage == ZeroStage::k0 ? shards.all_ranges() : shards.ranges(rank)) {
      const int64_t offset = flat.offset(table.at(range.id).trainable) - held.begin;
      segments.push_back({range.id,
                          range.begin,
                          range.end,
                          elements_of(held.values, offset + range.begin, offset + range.end),
                          {},
                          false});
    }
  }
};

ShardedParameterStore::ShardedParameterStore(Communicator& comm, ZeroStage stage,
                                             const FrozenStorage& storage)
    : comm_(comm), stage_(stage), state_(std::make_unique<State>(comm, stage, storage)) {}

ShardedParameterStore::~ShardedParameterStore() = default;

UnitId ShardedParameterStore::add_unit(std::string name) {
  if (state_->sealed)
    throw ArgumentError("add_unit('" + name + "'): expected before seal()");
  return state_->table.add_unit(std::move(name));
}

ParameterId ShardedParameterStore::declare(ParameterSpec spec) {
  if (state_->sealed)
    throw ArgumentError("declare('" + spec.name + "'): expected before seal()");
  return state_->table.declare(std::move(spec));
}

bool ShardedParameterStore::is_publisher(ParameterId id) const {
  return state_->table.at(id).publisher == comm_.rank();
}

void ShardedParameterStore::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = state_->table.at(id);
  state_->walk.require_closed("publish");
  if (is_publisher(id) && static_cast<int64_t>(bytes.size()) != parameter.num_bytes)
    throw ArgumentError(fmt::format("publish('{}'): expected {} bytes ({} {}), found {}",
                                    parameter.spec.name, parameter.num_bytes,
                                    parameter.spec.shape.to_string(), name_of(parameter.spec.dtype),
                                    bytes.size()));
  state_->residency->publish(id, is_publisher(id) ? bytes : std::span<const std::byte>());
  state_->set_published(id);
}

UnitLease ShardedParameterStore::acquire(UnitId unit, Pass) {
  comm_.note_unit(static_cast<int64_t>(unit));
  state_->walk.acquire(unit);
  return UnitLease(*this, unit);
}

void ShardedParameterStore::release(UnitId unit) noexcept { state_->walk.release(unit); }

void ShardedParameterStore::fetch_rows(std::span<const RowFetch> fetches) {
  for (const RowFetch& fetch : fetches) {
    const DeclaredParameter& parameter = state_->table.at(fetch.id);
    const Shape& shape = parameter.spec.shape;
    state_->require_published(fetch.id, "fetch_rows");
    if (parameter.is_trainable() || shape.ndim() < 2 || parameter.num_bytes == 0)
      throw ArgumentError(fmt::format("fetch_rows('{}'): expected a frozen matrix, found {} {}",
                                      parameter.spec.name, name_of(parameter.spec.dtype),
                                      shape.to_string()));
    const auto row_bytes = static_cast<size_t>(parameter.num_bytes / shape[0]);
    if (fetch.out.size() != fetch.rows.size() * row_bytes)
      throw ArgumentError(
          fmt::format("fetch_rows('{}'): expected room for {} rows of {} bytes, "
                      "found {} bytes",
                      parameter.spec.name, fetch.rows.size(), row_bytes, fetch.out.size()));
    for (const int32_t row : fetch.rows) {
      if (row < 0 || row >= shape[0])
        throw ArgumentError(fmt::format("fetch_rows('{}'): expected a row below {}, found {}",
                                        parameter.spec.name, shape[0], row));
    }
  }
  state_->walk.fetch_rows(fetches);
}

void ShardedParameterStore::begin_walk(std::span<const UnitId> units) { state_->walk.begin(units); }

void ShardedParameterStore::end_walk() { state_->walk.end(); }

void ShardedParameterStore::abandon_walk() noexcept { state_->walk.abandon(); }

int64_t ShardedParameterStore::max_held_bytes() const {
  return state_->residency->max_held_bytes();
}

int64_t ShardedParameterStore::num_parameters() const { return state_->table.num_parameters(); }

const ParameterSpec& ShardedParameterStore::spec(ParameterId id) const {
  return state_->table.at(id).spec;
}

ParameterId ShardedParameterStore::find(std::string_view name) const {
  return state_->table.find(name);
}

TensorView ShardedParameterStore::value(ParameterId id) const {
  state_->leased(id, "value");
  return state_->residency->value(id);
}

TensorView ShardedParameterStore::value_bf16(ParameterId id) const {
  const DeclaredParameter& parameter = state_->leased(id, "value_bf16");
  state_->table.trainable(id, "value_bf16('" + parameter.spec.name + "')");
  return state_->residency->value_bf16(id);
}

void ShardedParameterStore::grad(ParameterId id, const TensorView& leaf) {
  const DeclaredParameter& parameter = state_->table.trainable(id, "grad");
  if (!state_->accumulator || !state_->accumulator->in_micro_batch())
    throw ArgumentError("grad('" + parameter.spec.name + "'): no micro-batch is running");
  if (!(leaf.shape() == parameter.spec.shape))
    throw ArgumentError(fmt::format("grad('{}'): expected {}, found {}", parameter.spec.name,
                                    parameter.spec.shape.to_string(), leaf.shape().to_string()));
  if (!state_->accumulator->add_leaf(parameter.trainable, leaf.span<const float>()))
    throw ArgumentError("grad('" + parameter.spec.name +
                        "'): expected once in a micro-batch, found a second gradient");
}

void ShardedParameterStore::seal() {
  if (state_->sealed)
    throw ArgumentError("seal: expected once");
  const ParameterTable& table = state_->table;
  check_same_on_all_ranks(comm_, "declared parameters", table.declarations());
  std::vector<ShardedTensor> tensors;
  for (const ParameterId id : table.trainables())
    tensors.push_back({id, table.at(id).spec.shape.numel()});
  state_->shards = ShardLayout(std::move(tensors), comm_.world_size());
  state_->flat = FlatLayout(state_->shards);
  state_->residency->seal(state_->shards, state_->flat);
  state_->sealed = true;
  state_->accumulator.emplace(comm_, state_->flat, table.trainables().size());
  state_->build_segments(stage_, comm_.rank());
}

void ShardedParameterStore::begin_step(int64_t num_micro_batches) {
  state_->require_sealed("begin_step");
  state_->accumulator->begin_step(num_micro_batches);
  state_->gradients_finished = false;
  state_->gradient = Tensor();
  for (Segment& segment : state_->segments) {
    segment.gradient = {};
    segment.has_gradient = false;
  }
}

int64_t ShardedParameterStore::num_rounds() const {
  state_->require_sealed("num_rounds");
  return state_->accumulator->num_rounds();
}

int64_t ShardedParameterStore::micro_batch_of_round(int64_t round) const {
  state_->require_sealed("micro_batch_of_round");
  return state_->accumulator->micro_batch_of_round(round);
}

void ShardedParameterStore::begin_micro_batch(int64_t m) {
  state_->require_sealed("begin_micro_batch");
  state_->accumulator->begin_micro_batch(m);
}

void ShardedParameterStore::end_round() {
  state_->require_between_walks("end_round");
  const Traffic before = comm_.exchanged();
  state_->accumulator->end_round();
  state_->moved.gradients += comm_.exchanged() - before;
}

void ShardedParameterStore::cancel_step() {
  state_->require_sealed("cancel_step");
  state_->accumulator->cancel();
}

void ShardedParameterStore::finish_gradients() {
  state_->require_between_walks("finish_gradients");
  Tensor own = state_->accumulator->finish();
  const FlatLayout::Shard& shard = state_->flat.shard(comm_.rank());
  const std::span<float> own_span = own.empty() ? std::span<float>() : own.span<float>();
  if (stage_ >= ZeroStage::k2 || comm_.world_size() == 1) {
    state_->gradient_origin = shard.begin;
    state_->gradient = std::move(own);
  } else {
    state_->gradient_origin = 0;
    state_->gradient = Tensor(Shape{state_->flat.size()}, DType::kFloat32);
    if (!own_span.empty())
      std::memcpy(state_->gradient.data<float>() + shard.begin, own_span.data(),
                  own_span.size_bytes());
    const Traffic before = comm_.exchanged();
    all_gather_shards(comm_, state_->flat, state_->gradient.span<float>());
    state_->moved.gradients += comm_.exchanged() - before;
  }
  for (Segment& segment : state_->segments) {
    const size_t tensor = state_->table.at(segment.id).trainable;
    const int64_t offset = state_->flat.offset(tensor);
    segment.gradient = state_->gradient_of(offset + segment.begin, offset + segment.end);
    segment.has_gradient = state_->accumulator->has_gradient(tensor);
  }
  state_->gradients_finished = true;
}

std::span<ShardedParameterStore::Segment> ShardedParameterStore::segments() {
  state_->require_sealed("segments");
  return state_->segments;
}

const ShardLayout& ShardedParameterStore::layout() const {
  state_->require_sealed("layout");
  return state_->shards;
}

double ShardedParameterStore::gradient_square_sum() {
  if (!state_->gradients_finished)
    throw ArgumentError("gradient_square_sum: expected after finish_gradients()");
  // Each rank sums its own chunks, also at stages 0 and 1 where it holds all of them.
  std::vector<double> sums(static_cast<size_t>(state_->shards.num_chunks()));
  const std::span<double> all(sums);
  const auto chunks_of = [&](int rank) {
    const auto first = static_cast<size_t>(state_->shards.first_chunk(rank));
    return all.subspan(first, static_cast<size_t>(state_->shards.first_chunk(rank + 1)) - first);
  };
  const std::span<double> own = chunks_of(comm_.rank());
  size_t chunk = 0;
  for (const FlatLayout::Piece& piece : state_->flat.shard(comm_.rank()).pieces) {
    const auto num_chunks = static_cast<size_t>(ceil_div(piece.length, kShardGranule));
    kernels::sum_squares_per_chunk(
        state_->gradient_of(piece.flat_begin, piece.flat_begin + piece.length),
        own.subspan(chunk, num_chunks));
    chunk += num_chunks;
  }
  std::vector<Block> blocks;
  for (int rank = 0; rank < comm_.world_size(); ++rank)
    blocks.push_back({rank, std::as_writable_bytes(chunks_of(rank))});
  comm_.all_gather_blocks(blocks);
  double total = 0.0;
  for (const double sum : sums)
    total += sum;
  return total;
}

void ShardedParameterStore::publish_updates() {
  state_->require_between_walks("publish_updates");
  const Traffic before = comm_.exchanged();
  state_->residency->publish_updates();
  state_->moved.weights += comm_.exchanged() - before;
}

StoreTraffic ShardedParameterStore::traffic() const {
  StoreTraffic traffic = state_->residency->traffic();
  traffic.gradients = state_->moved.gradients;
  traffic.weights = state_->moved.weights;
  return traffic;
}

void ShardedParameterStore::read(ParameterId id, std::span<float> values) {
  const DeclaredParameter& parameter = state_->table.trainable(id, "read");
  state_->require_between_walks("read");
  const int64_t expected = comm_.rank() == 0 ? parameter.spec.shape.numel() : 0;
  if (static_cast<int64_t>(values.size()) != expected)
    throw ArgumentError(
        fmt::format("read('{}'): expected room for {} elements on rank {}, found "
                    "{}",
                    parameter.spec.name, expected, comm_.rank(), values.size()));
  state_->residency->read(id, values);
}

void ShardedParameterStore::write(ParameterId id, int64_t begin, std::span<const float> values) {
  const DeclaredParameter& parameter = state_->table.trainable(id, "write");
  state_->require_between_walks("write");
  const auto count = static_cast<int64_t>(values.size());
  if (begin < 0 || count > parameter.spec.shape.numel() - begin)
    throw ArgumentError(fmt::format("write('{}'): {} elements from {} are not in {}",
                                    parameter.spec.name, count, begin,
                                    parameter.spec.shape.to_string()));
  const HeldWeights held = state_->residency->weights();
  const int64_t first = state_->flat.offset(parameter.trainable) + begin - held.begin;
  const int64_t from = std::max<int64_t>(first, 0);
  const int64_t to = std::min(first + count, static_cast<int64_t>(held.values.size()));
  if (from < to)
    std::copy_n(values.begin() + (from - first), to - from, held.values.begin() + from);
  state_->set_published(id);
}

std::vector<ParameterId> ShardedParameterStore::trainables() const {
  return state_->table.trainables();
}

int64_t ShardedParameterStore::num_trainable_elements() const {
  int64_t total = 0;
  for (const ParameterId id : state_->table.trainables())
    total += state_->table.at(id).spec.shape.numel();
  return total;
}

double ShardedParameterStore::background_cpu_seconds() const {
  return state_->residency->background_cpu_seconds();
}

StoreMemory ShardedParameterStore::memory() const {
  const ResidencyMemory held = state_->residency->memory();
  StoreMemory memory;
  memory.base_bytes = held.base_bytes;
  memory.shared_bytes = held.shared_bytes;
  memory.adapter_bytes = held.weight_bytes;
  memory.unit_bytes = held.unit_bytes;
  if (!state_->sealed)
    return memory;
  memory.gradient_bytes = state_->accumulator->bytes();
  if (!state_->gradient.empty())
    memory.gradient_bytes += state_->gradient.num_bytes();
  memory.buffer_bytes = state_->accumulator->peak_buffer_bytes();
  return memory;
}

}  // namespace shardtune::parallel
