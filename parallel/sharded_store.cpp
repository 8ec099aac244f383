#include "parallel/sharded_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "core/checked.h"
#include "core/rng.h"
#include "kernels/elementwise.h"
#include "parallel/gradient_accumulator.h"

namespace shardtune::parallel {

namespace {
constexpr size_t kNotTrainable = static_cast<size_t>(-1);

struct Parameter {
  ParameterSpec spec;
  int64_t num_bytes = 0;
  int publisher = 0;
  size_t trainable = kNotTrainable;  // index among trainables
  bool published = false;
  Tensor bytes;  // frozen: the whole; trainable: until seal() moves it into the flat buffer
  Tensor bf16;   // trainable, published before seal()
};

struct Unit {
  std::string name;
  int64_t num_leases = 0;
};

TensorView flat_view(const Tensor& flat, int64_t offset, const Shape& shape) {
  auto* base = static_cast<std::byte*>(flat.view().raw());
  return TensorView(base + offset * size_of(flat.dtype()), flat.dtype(), shape);
}

std::span<float> flat_span(const Tensor& flat, int64_t begin, int64_t end) {
  if (begin == end)
    return {};
  return flat.span<float>().subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}
}  // namespace

ZeroStage zero_stage_from(int64_t number) {
  if (number < 0 || number > 3)
    throw ConfigError(
        fmt::format("parallel.zero_optimization.stage: expected 0, 1, 2 or 3, found {}", number));
  return static_cast<ZeroStage>(number);
}

struct ShardedParameterStore::State {
  std::vector<Unit> units;
  std::vector<Parameter> parameters;
  std::vector<ParameterId> trainables;
  std::unordered_map<std::string, ParameterId> ids;
  int64_t frozen_bytes = 0;
  int64_t num_tensors = 0;  // parameters that are no part of another

  bool sealed = false;
  ShardLayout shards;
  FlatLayout flat;
  Tensor master_weight;         // flat
  Tensor bf16;                  // flat
  Tensor gradient;              // flat at stages 0 and 1, this rank's shard at stage 2
  int64_t gradient_origin = 0;  // flat element that `gradient` begins with
  std::optional<GradientAccumulator> accumulator;
  std::vector<Segment> segments;
  bool gradients_finished = false;

  Parameter& at(ParameterId id) {
    const auto index = static_cast<int64_t>(id);
    if (index < 0 || index >= static_cast<int64_t>(parameters.size()))
      throw ArgumentError(fmt::format("parameter store: expected an id below {}, found {}",
                                      parameters.size(), index));
    return parameters[static_cast<size_t>(index)];
  }

  Unit& unit(UnitId id) {
    const auto index = static_cast<int64_t>(id);
    if (index < 0 || index >= static_cast<int64_t>(units.size()))
      throw ArgumentError(
          fmt::format("parameter store: expected a unit below {}, found {}", units.size(), index));
    return units[static_cast<size_t>(index)];
  }

  Parameter& trainable(ParameterId id, std::string_view call) {
    Parameter& parameter = at(id);
    if (parameter.trainable == kNotTrainable)
      throw ArgumentError(fmt::format("{}: expected a trainable, found {} '{}'", call, "frozen",
                                      parameter.spec.name));
    return parameter;
  }

  void require_sealed(std::string_view call) const {
    if (!sealed)
      throw ArgumentError(fmt::format("{}: expected seal() before it", call));
  }

  Parameter& leased(ParameterId id, std::string_view call) {
    Parameter& parameter = at(id);
    if (unit(parameter.spec.unit).num_leases == 0)
      throw ArgumentError(fmt::format(
          "{}('{}'): its unit '{}' is not leased. Keep the lease of acquire() while the view is "
          "used.",
          call, parameter.spec.name, unit(parameter.spec.unit).name));
    if (!parameter.published)
      throw ArgumentError(
          fmt::format("{}('{}'): nothing was published", call, parameter.spec.name));
    return parameter;
  }

  TensorView master_view(const Parameter& parameter) const {
    return sealed ? flat_view(master_weight, flat.offset(parameter.trainable), parameter.spec.shape)
                  : parameter.bytes.view();
  }
  TensorView bf16_view(const Parameter& parameter) const {
    return sealed ? flat_view(bf16, flat.offset(parameter.trainable), parameter.spec.shape)
                  : parameter.bf16.view();
  }

  /// What all ranks must declare alike.
  std::string declarations() const {
    uint64_t digest = 0;
    for (const Parameter& parameter : parameters) {
      const auto extents = parameter.spec.shape.extents();
      digest = mix_key(digest, parameter.spec.name);
      digest = mix_key(digest, {static_cast<uint64_t>(parameter.spec.unit),
                                static_cast<uint64_t>(parameter.spec.kind),
                                static_cast<uint64_t>(parameter.spec.dtype), extents.size()});
      for (const int64_t extent : extents)
        digest = mix_key(digest, {static_cast<uint64_t>(extent)});
    }
    return fmt::format("{} units, {} parameters, {} trainable, digest {:016x}", units.size(),
                       parameters.size(), trainables.size(), digest);
  }

  void build_segments(ZeroStage stage, int rank) {
    segments.clear();
    const auto ranges = stage == ZeroStage::k0 ? shards.all_ranges() : shards.ranges(rank);
    for (const ShardRange& range : ranges) {
      const int64_t offset = flat.offset(at(range.id).trainable);
      segments.push_back({range.id,
                          range.begin,
                          range.end,
                          flat_span(master_weight, offset + range.begin, offset + range.end),
                          {},
                          false});
    }
  }
};

ShardedParameterStore::ShardedParameterStore(Communicator& comm, ZeroStage stage)
    : comm_(comm), stage_(stage), state_(std::make_unique<State>()) {
  if (stage == ZeroStage::k3)
    throw UnsupportedError(
        "parallel.zero_optimization.stage: expected 0, 1 or 2, found 3, which is not there yet "
        "(docs/status.md). Write 'stage: 2'.");
}

ShardedParameterStore::~ShardedParameterStore() = default;

UnitId ShardedParameterStore::add_unit(std::string name) {
  if (state_->sealed)
    throw ArgumentError("add_unit('" + name + "'): expected before seal()");
  state_->units.push_back({std::move(name)});
  return UnitId{narrow<int32_t>(static_cast<int64_t>(state_->units.size()) - 1)};
}

ParameterId ShardedParameterStore::declare(ParameterSpec spec) {
  if (state_->sealed)
    throw ArgumentError("declare('" + spec.name + "'): expected before seal()");
  if (state_->ids.contains(spec.name))
    throw ArgumentError("declare('" + spec.name + "'): a parameter of this name is there already");
  const bool trainable = spec.kind == ParameterKind::kTrainable;
  if (trainable && spec.dtype != DType::kFloat32)
    throw ArgumentError(fmt::format("declare('{}'): expected a trainable of float32, found {}",
                                    spec.name, name_of(spec.dtype)));
  state_->unit(spec.unit);
  Parameter parameter;
  parameter.num_bytes = checked_mul(spec.shape.numel(), size_of(spec.dtype));
  parameter.publisher = spec.part_of == kNoParameter
                            ? static_cast<int>(state_->num_tensors++ % comm_.world_size())
                            : state_->at(spec.part_of).publisher;
  const ParameterId id{narrow<int32_t>(static_cast<int64_t>(state_->parameters.size()))};
  state_->ids.emplace(spec.name, id);
  parameter.spec = std::move(spec);
  if (trainable) {
    parameter.trainable = state_->trainables.size();
    state_->trainables.push_back(id);
  }
  state_->parameters.push_back(std::move(parameter));
  return id;
}

bool ShardedParameterStore::is_publisher(ParameterId id) const {
  return state_->at(id).publisher == comm_.rank();
}

void ShardedParameterStore::publish(ParameterId id, std::span<const std::byte> bytes) {
  Parameter& parameter = state_->at(id);
  const bool trainable = parameter.trainable != kNotTrainable;
  if (is_publisher(id) && static_cast<int64_t>(bytes.size()) != parameter.num_bytes)
    throw ArgumentError(fmt::format("publish('{}'): expected {} bytes ({} {}), found {}",
                                    parameter.spec.name, parameter.num_bytes,
                                    parameter.spec.shape.to_string(), name_of(parameter.spec.dtype),
                                    bytes.size()));
  const bool in_flat = trainable && state_->sealed;
  if (!in_flat && parameter.bytes.empty()) {
    parameter.bytes = Tensor(parameter.spec.shape, parameter.spec.dtype);
    if (trainable)
      parameter.bf16 = Tensor(parameter.spec.shape, DType::kBFloat16);
    else
      state_->frozen_bytes += parameter.num_bytes;
  }
  const TensorView target = trainable ? state_->master_view(parameter) : parameter.bytes.view();
  const std::span<std::byte> target_bytes(static_cast<std::byte*>(target.raw()),
                                          static_cast<size_t>(parameter.num_bytes));
  if (is_publisher(id) && !bytes.empty())
    std::memcpy(target_bytes.data(), bytes.data(), bytes.size());
  comm_.broadcast(target_bytes, parameter.publisher, parameter.spec.dtype,
                  mix_key(0, parameter.spec.name));
  if (trainable && parameter.num_bytes > 0)
    kernels::cast(target, state_->bf16_view(parameter));
  parameter.published = true;
}

UnitLease ShardedParameterStore::acquire(UnitId unit, Pass pass) {
  ++state_->unit(unit).num_leases;
  comm_.note_unit(static_cast<int64_t>(unit));
  return UnitLease(*this, unit);
}

void ShardedParameterStore::release(UnitId unit) noexcept {
  --state_->units[static_cast<size_t>(unit)].num_leases;
}

std::vector<UnitId> ShardedParameterStore::unit_order(Pass pass) const {
  std::vector<UnitId> order;
  for (size_t i = 0; i < state_->units.size(); ++i)
    order.push_back(UnitId{static_cast<int32_t>(i)});
  if (pass != Pass::kForward)
    std::ranges::reverse(order);
  return order;
}

int64_t ShardedParameterStore::num_parameters() const {
  return static_cast<int64_t>(state_->parameters.size());
}

const ParameterSpec& ShardedParameterStore::spec(ParameterId id) const {
  return state_->at(id).spec;
}

ParameterId ShardedParameterStore::find(std::string_view name) const {
  const auto found = state_->ids.find(std::string(name));
  return found == state_->ids.end() ? kNoParameter : found->second;
}

TensorView ShardedParameterStore::value(ParameterId id) const {
  const Parameter& parameter = state_->leased(id, "value");
  return parameter.trainable == kNotTrainable ? parameter.bytes.view()
                                              : state_->master_view(parameter);
}

TensorView ShardedParameterStore::value_bf16(ParameterId id) const {
  const Parameter& parameter = state_->leased(id, "value_bf16");
  return state_->bf16_view(state_->trainable(id, "value_bf16('" + parameter.spec.name + "')"));
}

void ShardedParameterStore::grad(ParameterId id, const TensorView& leaf) {
  const Parameter& parameter = state_->trainable(id, "grad");
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
  check_same_on_all_ranks(comm_, "declared parameters", state_->declarations());
  std::vector<ShardedTensor> tensors;
  for (const ParameterId id : state_->trainables)
    tensors.push_back({id, state_->at(id).spec.shape.numel()});
  state_->shards = ShardLayout(std::move(tensors), comm_.world_size());
  state_->flat = FlatLayout(state_->shards);
  state_->master_weight = Tensor::zeros(Shape{state_->flat.size()}, DType::kFloat32);
  state_->bf16 = Tensor::zeros(Shape{state_->flat.size()}, DType::kBFloat16);
  state_->sealed = true;
  for (const ParameterId id : state_->trainables) {
    Parameter& parameter = state_->at(id);
    if (!parameter.published || parameter.num_bytes == 0)
      continue;
    std::memcpy(state_->master_view(parameter).raw(), parameter.bytes.view().raw(),
                static_cast<size_t>(parameter.num_bytes));
    std::memcpy(state_->bf16_view(parameter).raw(), parameter.bf16.view().raw(),
                static_cast<size_t>(parameter.num_bytes / 2));
    parameter.bytes = Tensor();
    parameter.bf16 = Tensor();
  }
  state_->accumulator.emplace(comm_, state_->flat, state_->trainables.size());
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
  state_->require_sealed("end_round");
  state_->accumulator->end_round();
}

void ShardedParameterStore::cancel_step() {
  state_->require_sealed("cancel_step");
  state_->accumulator->cancel();
}

namespace {
// Every rank's shard of a flat buffer to every other rank. `own` is this rank's shard; the others
// are received into `flat`.
void all_gather_shards(Communicator& comm, const FlatLayout& layout, std::span<const float> own,
                       const Tensor& flat) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < comm.world_size(); ++peer) {
    if (peer == comm.rank())
      continue;
    if (!own.empty())
      sends.push_back({peer, std::as_bytes(own)});
    const FlatLayout::Shard& shard = layout.shard(peer);
    if (!shard.empty())
      receives.push_back({peer, std::as_writable_bytes(flat_span(flat, shard.begin, shard.end))});
  }
  comm.exchange(sends, receives, DType::kFloat32);
}
}  // namespace

void ShardedParameterStore::finish_gradients() {
  state_->require_sealed("finish_gradients");
  Tensor own = state_->accumulator->finish();
  const FlatLayout::Shard& shard = state_->flat.shard(comm_.rank());
  const std::span<float> own_span = own.empty() ? std::span<float>() : own.span<float>();
  if (stage_ == ZeroStage::k2 || comm_.world_size() == 1) {
    state_->gradient_origin = shard.begin;
    state_->gradient = std::move(own);
  } else {
    state_->gradient_origin = 0;
    state_->gradient = Tensor(Shape{state_->flat.size()}, DType::kFloat32);
    if (!own_span.empty())
      std::memcpy(state_->gradient.data<float>() + shard.begin, own_span.data(),
                  own_span.size_bytes());
    all_gather_shards(comm_, state_->flat, own_span, state_->gradient);
  }
  for (Segment& segment : state_->segments) {
    const size_t tensor = state_->at(segment.id).trainable;
    const int64_t origin = state_->flat.offset(tensor) - state_->gradient_origin;
    segment.gradient = flat_span(state_->gradient, origin + segment.begin, origin + segment.end);
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
    const int64_t begin = piece.flat_begin - state_->gradient_origin;
    const auto num_chunks = static_cast<size_t>(ceil_div(piece.length, kShardGranule));
    kernels::sum_squares_per_chunk(flat_span(state_->gradient, begin, begin + piece.length),
                                   own.subspan(chunk, num_chunks));
    chunk += num_chunks;
  }
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < comm_.world_size(); ++peer) {
    if (peer == comm_.rank())
      continue;
    if (!own.empty())
      sends.push_back({peer, std::as_bytes(own)});
    if (!chunks_of(peer).empty())
      receives.push_back({peer, std::as_writable_bytes(chunks_of(peer))});
  }
  comm_.exchange(sends, receives, DType::kUInt8);
  double total = 0.0;
  for (const double sum : sums)
    total += sum;
  return total;
}

void ShardedParameterStore::publish_updates() {
  state_->require_sealed("publish_updates");
  if (stage_ != ZeroStage::k0) {
    const FlatLayout::Shard& shard = state_->flat.shard(comm_.rank());
    all_gather_shards(comm_, state_->flat, flat_span(state_->master_weight, shard.begin, shard.end),
                      state_->master_weight);
  }
  if (state_->flat.size() > 0)
    kernels::cast(state_->master_weight, state_->bf16);
}

void ShardedParameterStore::read(ParameterId id, int64_t begin, std::span<float> values) const {
  const Parameter& parameter = state_->trainable(id, "read");
  state_->require_sealed("read");
  const auto count = static_cast<int64_t>(values.size());
  if (begin < 0 || count > parameter.spec.shape.numel() - begin)
    throw ArgumentError(fmt::format("read('{}'): {} elements from {} are not in {}",
                                    parameter.spec.name, count, begin,
                                    parameter.spec.shape.to_string()));
  const int64_t first = state_->flat.offset(parameter.trainable) + begin;
  std::ranges::copy(flat_span(state_->master_weight, first, first + count), values.begin());
}

void ShardedParameterStore::write(ParameterId id, int64_t begin, std::span<const float> values) {
  Parameter& parameter = state_->trainable(id, "write");
  state_->require_sealed("write");
  const auto count = static_cast<int64_t>(values.size());
  if (begin < 0 || count > parameter.spec.shape.numel() - begin)
    throw ArgumentError(fmt::format("write('{}'): {} elements from {} are not in {}",
                                    parameter.spec.name, count, begin,
                                    parameter.spec.shape.to_string()));
  const int64_t first = state_->flat.offset(parameter.trainable) + begin;
  std::ranges::copy(values, flat_span(state_->master_weight, first, first + count).begin());
  parameter.published = true;
}

std::vector<ParameterId> ShardedParameterStore::trainables() const { return state_->trainables; }

int64_t ShardedParameterStore::num_trainable_elements() const {
  int64_t total = 0;
  for (const ParameterId id : state_->trainables)
    total += state_->at(id).spec.shape.numel();
  return total;
}

StoreMemory ShardedParameterStore::memory() const {
  StoreMemory memory;
  memory.base_bytes = state_->frozen_bytes;
  if (!state_->sealed)
    return memory;
  memory.adapter_bytes = state_->master_weight.num_bytes() + state_->bf16.num_bytes();
  memory.gradient_bytes = state_->accumulator->bytes();
  if (!state_->gradient.empty())
    memory.gradient_bytes += state_->gradient.num_bytes();
  memory.buffer_bytes = state_->accumulator->peak_buffer_bytes();
  return memory;
}

}  // namespace shardtune::parallel
