// Everything whole on every rank: bringing a unit is nothing to do. Trainables stand in the flat
// buffer from seal() on, with a bf16 copy beside them.
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "kernels/elementwise.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

namespace {

TensorView flat_view(const Tensor& flat, int64_t offset, const Shape& shape) {
  auto* base = static_cast<std::byte*>(flat.view().raw());
  return TensorView(base + offset * size_of(flat.dtype()), flat.dtype(), shape);
}

class WholeResidency final : public UnitResidency {
 public:
  WholeResidency(Communicator& comm, const ParameterTable& table, ZeroStage stage)
      : comm_(comm), table_(table), stage_(stage) {}

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override;

  void prefetch(UnitId) override {}
  void acquire(UnitId) override {}
  void release(UnitId) noexcept override {}
  void fetch_rows(std::span<const RowFetch> fetches) override;
  int64_t max_held_bytes() const override { return INT64_MAX; }

  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;

  HeldWeights weights() override { return {0, flat_values()}; }
  void publish_updates() override;
  void read(ParameterId id, std::span<float> values) override;
  ResidencyMemory memory() const override;

 private:
  struct Entry {
    Tensor bytes;  // frozen: the whole; trainable: until seal() moves it into the flat buffer
    Tensor bf16;   // trainable, published before seal()
  };
  Entry& entry(ParameterId id) {
    if (entries_.size() < static_cast<size_t>(table_.num_parameters()))
      entries_.resize(static_cast<size_t>(table_.num_parameters()));
    return entries_[static_cast<size_t>(id)];
  }
  std::span<float> flat_values() const {
    return flat_.size() == 0 ? std::span<float>() : master_weight_.span<float>();
  }
  int64_t offset(const DeclaredParameter& parameter) const {
    return flat_.offset(parameter.trainable);
  }

  Communicator& comm_;
  const ParameterTable& table_;
  ZeroStage stage_;
  std::vector<Entry> entries_;
  int64_t frozen_bytes_ = 0;
  bool sealed_ = false;
  FlatLayout flat_;
  Tensor master_weight_;  // flat
  Tensor bf16_;           // flat
};

void WholeResidency::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  Entry& own = entry(id);
  const bool in_flat = parameter.is_trainable() && sealed_;
  if (!in_flat && own.bytes.empty()) {
    own.bytes = Tensor(parameter.spec.shape, parameter.spec.dtype);
    if (parameter.is_trainable())
      own.bf16 = Tensor(parameter.spec.shape, DType::kBFloat16);
    else
      frozen_bytes_ += parameter.num_bytes;
  }
  const TensorView target = value(id);
  const std::span<std::byte> target_bytes(static_cast<std::byte*>(target.raw()),
                                          static_cast<size_t>(parameter.num_bytes));
  if (parameter.publisher == comm_.rank() && !bytes.empty())
    std::memcpy(target_bytes.data(), bytes.data(), bytes.size());
  comm_.broadcast(target_bytes, parameter.publisher, parameter.spec.dtype,
                  mix_key(0, parameter.spec.name));
  if (parameter.is_trainable() && parameter.num_bytes > 0)
    kernels::cast(target, value_bf16(id));
}

void WholeResidency::seal(const ShardLayout&, const FlatLayout& flat) {
  flat_ = flat;
  master_weight_ = Tensor::zeros(Shape{flat.size()}, DType::kFloat32);
  bf16_ = Tensor::zeros(Shape{flat.size()}, DType::kBFloat16);
  sealed_ = true;
  for (const ParameterId id : table_.trainables()) {
    Entry& own = entry(id);
    if (own.bytes.empty() || own.bytes.num_bytes() == 0)
      continue;
    std::memcpy(value(id).raw(), own.bytes.view().raw(),
                static_cast<size_t>(own.bytes.num_bytes()));
    std::memcpy(value_bf16(id).raw(), own.bf16.view().raw(),
                static_cast<size_t>(own.bf16.num_bytes()));
    own = Entry();
  }
}

void WholeResidency::fetch_rows(std::span<const RowFetch> fetches) {
  for (const RowFetch& fetch : fetches)
    copy_rows(value(fetch.id), fetch);
}

TensorView WholeResidency::value(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  return parameter.is_trainable() && sealed_
             ? flat_view(master_weight_, offset(parameter), parameter.spec.shape)
             : entries_[static_cast<size_t>(id)].bytes.view();
}

TensorView WholeResidency::value_bf16(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  return sealed_ ? flat_view(bf16_, offset(parameter), parameter.spec.shape)
                 : entries_[static_cast<size_t>(id)].bf16.view();
}

void WholeResidency::publish_updates() {
  if (stage_ != ZeroStage::k0)
    all_gather_shards(comm_, flat_, flat_values());
  if (flat_.size() > 0)
    kernels::cast(master_weight_, bf16_);
}

void WholeResidency::read(ParameterId id, std::span<float> values) {
  if (!values.empty())
    std::memcpy(values.data(), value(id).raw(), values.size_bytes());
}

ResidencyMemory WholeResidency::memory() const {
  ResidencyMemory memory;
  memory.base_bytes = frozen_bytes_;
  if (sealed_)
    memory.weight_bytes = master_weight_.num_bytes() + bf16_.num_bytes();
  return memory;
}

}  // namespace

void copy_rows(const TensorView& table, const RowFetch& fetch) {
  const auto row_bytes = static_cast<size_t>(table.num_bytes() / table.dim(0));
  const auto* source = static_cast<const std::byte*>(table.raw());
  for (size_t i = 0; i < fetch.rows.size(); ++i)
    std::memcpy(fetch.out.data() + i * row_bytes,
                source + static_cast<size_t>(fetch.rows[i]) * row_bytes, row_bytes);
}

std::unique_ptr<UnitResidency> make_whole_residency(Communicator& comm, const ParameterTable& table,
                                                    ZeroStage stage) {
  return std::make_unique<WholeResidency>(comm, table, stage);
}

}  // namespace shardtune::parallel
