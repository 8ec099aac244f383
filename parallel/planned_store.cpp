#include "parallel/planned_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "core/checked.h"
#include "core/dry_run.h"

namespace shardtune::parallel {

AddressRange::AddressRange(int64_t num_bytes) : num_bytes_(static_cast<size_t>(num_bytes)) {
  if (num_bytes == 0)
    return;
  void* address =
      mmap(nullptr, num_bytes_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED)
    throw OutOfMemoryError("plan: expected " + std::to_string(num_bytes) +
                           " addresses for a shared parameter, found none. Raise the limit of the "
                           "address space (ulimit -v).");
  data_ = address;
}

AddressRange::AddressRange(AddressRange&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(other.num_bytes_) {}

AddressRange& AddressRange::operator=(AddressRange&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

AddressRange::~AddressRange() {
  if (data_ != nullptr)
    munmap(data_, num_bytes_);
}

UnitId PlannedStore::add_unit(std::string name) {
  units_.push_back({std::move(name), 0, 0, 0, Tensor()});
  return UnitId{narrow<int32_t>(static_cast<int64_t>(units_.size()) - 1)};
}

ParameterId PlannedStore::declare(ParameterSpec spec) {
  Parameter parameter;
  parameter.num_bytes = checked_mul(spec.shape.numel(), size_of(spec.dtype));
  if (spec.kind == ParameterKind::kTrainable) {
    parameter.trainable = std::ranges::count_if(
        parameters_, [](const Parameter& earlier) { return earlier.trainable >= 0; });
  }
  parameter.spec = std::move(spec);
  parameters_.push_back(std::move(parameter));
  return ParameterId{narrow<int32_t>(num_parameters() - 1)};
}

int64_t PlannedStore::held(int64_t num_bytes) const {
  if (frozen_place_ == FrozenPlace::kNvme)
    return 0;
  return gathers() ? ceil_div(num_bytes, world_size_) : num_bytes;
}

void PlannedStore::publish(ParameterId id, std::span<const std::byte> bytes) {
  Parameter& parameter = parameters_.at(static_cast<size_t>(id));
  if (parameter.trainable >= 0)
    return;  // stands in the flat buffer
  const PurposeScope purpose(Purpose::kParameters);
  const ParameterSpec& spec = parameter.spec;
  const int64_t num_bytes = held(parameter.num_bytes);
  if (is_shared()) {
    parameter.shared = AddressRange(num_bytes);
    bytes_.shared += num_bytes;
  } else if (parameter.bytes.empty() && brings_units())
    parameter.bytes = Tensor(Shape{num_bytes}, DType::kUInt8);
  else if (parameter.bytes.empty())
    parameter.bytes = Tensor(spec.shape, spec.dtype);
  const bool is_part = spec.part_of != kNoParameter;
  const bool is_code = spec.dtype == DType::kUInt8 || spec.dtype == DType::kInt8;
  (is_part ? bytes_.scales : is_code ? bytes_.codes : bytes_.dense) += num_bytes;
  published_ = parameter.num_bytes + (is_part ? published_ : 0);
  largest_published_ = std::max(largest_published_, published_);
}

// Two buffers serve the unit at work and the one that is fetched ahead; each further unit that
// stays leased has one of its own.
UnitLease PlannedStore::acquire(UnitId id, Pass pass) {
  Unit& unit = units_.at(static_cast<size_t>(id));
  if (unit.num_leases == 0 && gathers())
    brought_.units += unit.num_brought_bytes;
  if (unit.num_leases++ == 0 && brings_units() && ++num_leased_ > 1) {
    const PurposeScope purpose(Purpose::kParameters);
    unit.buffer = Tensor(Shape{unit.num_bytes}, DType::kUInt8);
  }
  return UnitLease(*this, id);
}

void PlannedStore::fetch_rows(std::span<const RowFetch> fetches) {
  constexpr int64_t kRequestBytes = 8;  // of a row
  for (const RowFetch& fetch : fetches) {
    if (gathers())
      brought_.rows += static_cast<int64_t>(fetch.out.size() + fetch.rows.size() * kRequestBytes);
  }
}

void PlannedStore::release(UnitId id) noexcept {
  Unit& unit = units_[static_cast<size_t>(id)];
  if (--unit.num_leases > 0 || !brings_units())
    return;
  --num_leased_;
  unit.buffer = Tensor();
}

ParameterId PlannedStore::find(std::string_view name) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].spec.name == name)
      return ParameterId{static_cast<int32_t>(i)};
  }
  return kNoParameter;
}

TensorView PlannedStore::value(ParameterId id) const {
  const Parameter& parameter = at(id);
  if (gathers() || (brings_units() && parameter.trainable < 0))
    return {gather_.at(0).view().raw(), parameter.spec.dtype, parameter.spec.shape};
  if (parameter.trainable < 0 && is_shared())
    return {parameter.shared.data(), parameter.spec.dtype, parameter.spec.shape};
  if (parameter.trainable < 0)
    return parameter.bytes.view();
  float* const first =
      master_weight_.data<float>() + flat_.offset(static_cast<size_t>(parameter.trainable));
  return {first, DType::kFloat32, parameter.spec.shape};
}

TensorView PlannedStore::value_bf16(ParameterId id) const {
  const Parameter& parameter = at(id);
  if (gathers())
    return {gather_.at(0).view().raw(), DType::kBFloat16, parameter.spec.shape};
  BFloat16* const first =
      bf16_.data<BFloat16>() + flat_.offset(static_cast<size_t>(parameter.trainable));
  return {first, DType::kBFloat16, parameter.spec.shape};
}

void PlannedStore::seal() {
  std::vector<ShardedTensor> tensors;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].trainable >= 0)
      tensors.push_back({ParameterId{static_cast<int32_t>(i)}, parameters_[i].spec.shape.numel()});
  }
  shards_ = ShardLayout(std::move(tensors), world_size_);
  flat_ = FlatLayout(shards_);
  const PurposeScope purpose(Purpose::kParameters);
  // At stage 3 the bf16 copies are made in the buffer of a gathered unit.
  const int64_t size = gathers() ? shard().length() : flat_.size();
  master_weight_ = Tensor::zeros(Shape{size}, DType::kFloat32);
  bf16_ = Tensor::zeros(Shape{gathers() ? 0 : size}, DType::kBFloat16);
  bytes_.master = master_weight_.num_bytes();
  bytes_.bf16 = bf16_.num_bytes();
  if (brings_units())
    make_gather_buffers();
}

void PlannedStore::make_gather_buffers() {
  for (const Parameter& parameter : parameters_) {
    if (!gathers() && parameter.trainable >= 0)
      continue;  // stands in the flat buffer
    const int64_t copies = parameter.trainable >= 0 ? parameter.num_bytes / 2 : 0;
    Unit& unit = units_.at(static_cast<size_t>(parameter.spec.unit));
    unit.num_bytes += parameter.num_bytes + copies;
    unit.num_brought_bytes += parameter.num_bytes;
  }
  int64_t largest = 0;
  for (const Unit& unit : units_)
    largest = std::max(largest, unit.num_bytes);
  for (int i = 0; i < 2; ++i)
    gather_.emplace_back(Shape{largest}, DType::kUInt8);
  bytes_.gather = 2 * largest;
}

void PlannedStore::begin_step(int64_t num_micro_batches) { gradient_ = Tensor(); }

void PlannedStore::begin_micro_batch() {
  const PurposeScope purpose(Purpose::kParameters);
  if (leaf_.empty() && flat_.size() > 0)
    leaf_ = Tensor::zeros(Shape{flat_.size()}, DType::kFloat32);
}

void PlannedStore::end_round(int64_t num_leaves) {
  if (shard().empty())
    return;
  const PurposeScope purpose(Purpose::kParameters);
  std::vector<Tensor> received;
  for (int64_t i = 1; i < num_leaves; ++i)
    received.emplace_back(Shape{shard().length()}, DType::kFloat32);
  if (world_size_ == 1)
    counter_.push(std::move(leaf_));
  else
    counter_.push(Tensor(Shape{shard().length()}, DType::kFloat32));
  if (world_size_ == 1)
    leaf_ = Tensor();
  for (Tensor& term : received)
    counter_.push(std::move(term));
}

void PlannedStore::finish_gradients() {
  const PurposeScope purpose(Purpose::kParameters);
  std::optional<Tensor> own = counter_.fold();
  if (!own)
    return;
  if (stage_ == ZeroStage::k2 || stage_ == ZeroStage::k3 || world_size_ == 1)
    gradient_ = std::move(*own);
  else
    gradient_ = Tensor(Shape{flat_.size()}, DType::kFloat32);
}

void PlannedStore::cancel_step() { counter_.clear(); }

int PlannedStore::num_slots(int64_t num_leaves) {
  return std::popcount(static_cast<uint64_t>(num_leaves));
}

int64_t PlannedStore::take_largest_published() {
  published_ = 0;
  return std::exchange(largest_published_, 0);
}

int64_t PlannedStore::num_trainable_elements() const {
  int64_t total = 0;
  for (const ShardedTensor& tensor : shards_.tensors())
    total += tensor.numel;
  return total;
}

int64_t PlannedStore::num_owned_elements() const {
  int64_t total = 0;
  for (const ShardRange& range :
       stage_ == ZeroStage::k0 ? shards_.all_ranges() : shards_.ranges(rank_))
    total += range.end - range.begin;
  return total;
}

BroughtBytes PlannedStore::take_brought() { return std::exchange(brought_, {}); }

int64_t PlannedStore::sent_shards(int num_ranks, int64_t num_groups) const {
  int64_t elements = 0;
  for (int rank = 0; rank < num_ranks; ++rank)
    elements += flat_.shard(rank).length();
  return elements * num_groups * size_of(DType::kFloat32);
}

int64_t PlannedStore::sent_leaves(int num_ranks, int64_t num_leaves) const {
  return std::min<int64_t>(num_ranks, num_leaves) *
         (flat_.size() * size_of(DType::kFloat32) - sent_shards(num_ranks, 1));
}

}  // namespace shardtune::parallel
