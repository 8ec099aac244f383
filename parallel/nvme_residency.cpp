// Stages 0 to 2, and one rank at any stage, with the frozen base on NVMe: every rank stores all
// frozen units in its own file and keeps none in memory. Trainables are small and stay as in the
// whole residency.
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "parallel/frozen_swap.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

namespace {

class NvmeResidency final : public UnitResidency {
 public:
  NvmeResidency(Communicator& comm, const ParameterTable& table, ZeroStage stage,
                const FrozenStorage& storage)
      : comm_(comm),
        table_(table),
        max_held_bytes_(storage.max_held_bytes),
        weights_(make_whole_residency(comm, table, stage)),
        swap_(*storage.file) {}

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override {
    weights_->seal(shards, flat);
    swap_.seal(kNvmeReadAhead);
  }

  bool may_prefetch(UnitId unit, int64_t num_ahead) const override {
    return num_ahead < kNvmeReadAhead || (num_ahead < kNvmeMostAhead && swap_.has_room_for(unit));
  }
  void prefetch(UnitId unit) override { swap_.prefetch(unit); }
  void acquire(UnitId unit) override { swap_.acquire(unit); }
  void release(UnitId unit) noexcept override { swap_.release(unit); }
  void fetch_rows(std::span<const RowFetch> fetches) override;
  int64_t max_held_bytes() const override { return max_held_bytes_; }

  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override { return weights_->value_bf16(id); }

  HeldWeights weights() override { return weights_->weights(); }
  void publish_updates() override { weights_->publish_updates(); }
  void read(ParameterId id, std::span<float> values) override { weights_->read(id, values); }
  ResidencyMemory memory() const override {
    ResidencyMemory memory = weights_->memory();
    memory.unit_bytes = swap_.peak_buffer_bytes();
    return memory;
  }
  double background_cpu_seconds() override { return swap_.check_cpu_seconds(); }
  StoreTraffic traffic() const override {
    StoreTraffic traffic;
    traffic.units_read = swap_.read_bytes() - rows_read_;
    traffic.rows_read = rows_read_;
    return traffic;
  }

 private:
  void place(UnitId unit);

  Communicator& comm_;
  const ParameterTable& table_;
  int64_t max_held_bytes_;
  std::unique_ptr<UnitResidency> weights_;
  std::vector<int64_t> parts_;  // of a parameter in its unit; -1 for trainables
  FrozenSwap swap_;
  int64_t rows_read_ = 0;
};

void NvmeResidency::place(UnitId unit) {
  parts_.resize(static_cast<size_t>(table_.num_parameters()), -1);
  std::vector<FrozenSwap::Part> parts;
  for (const ParameterId id : table_.unit(unit).parameters) {
    const DeclaredParameter& parameter = table_.at(id);
    if (parameter.is_trainable())
      continue;
    parts_[static_cast<size_t>(id)] = static_cast<int64_t>(parts.size());
    parts.push_back({parameter.spec.name, parameter.num_bytes});
  }
  swap_.place(unit, parts);
}

void NvmeResidency::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable()) {
    weights_->publish(id, bytes);
    return;
  }
  if (!swap_.is_placed(parameter.spec.unit))
    place(parameter.spec.unit);
  if (static_cast<size_t>(id) >= parts_.size() || parts_[static_cast<size_t>(id)] < 0)
    throw ArgumentError("publish('" + parameter.spec.name +
                        "'): it was declared after a frozen parameter of its unit had been "
                        "published. Declare all of a unit first.");
  io::AlignedBuffer buffer(parameter.num_bytes);
  const std::span<std::byte> whole = buffer.bytes().first(static_cast<size_t>(parameter.num_bytes));
  if (parameter.publisher == comm_.rank() && !bytes.empty())
    std::memcpy(whole.data(), bytes.data(), bytes.size());
  comm_.broadcast(whole, parameter.publisher, parameter.spec.dtype,
                  mix_key(0, parameter.spec.name));
  swap_.store(parameter.spec.unit, parts_[static_cast<size_t>(id)], std::move(buffer));
}

void NvmeResidency::fetch_rows(std::span<const RowFetch> fetches) {
  const int64_t read_before = swap_.read_bytes();
  for (const RowFetch& fetch : fetches) {
    const DeclaredParameter& table = table_.at(fetch.id);
    swap_.read_rows(table.spec.unit, parts_[static_cast<size_t>(fetch.id)],
                    table.num_bytes / table.spec.shape[0], fetch);
  }
  rows_read_ += swap_.read_bytes() - read_before;
}

TensorView NvmeResidency::value(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable())
    return weights_->value(id);
  return TensorView(swap_.data(parameter.spec.unit, parts_[static_cast<size_t>(id)]),
                    parameter.spec.dtype, parameter.spec.shape);
}

}  // namespace

std::unique_ptr<UnitResidency> make_nvme_residency(Communicator& comm, const ParameterTable& table,
                                                   ZeroStage stage, const FrozenStorage& storage) {
  return std::make_unique<NvmeResidency>(comm, table, stage, storage);
}

}  // namespace shardtune::parallel
