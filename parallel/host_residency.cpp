// Stages 0 to 2 with one frozen base per host (parallel/host_segment.h): the publisher of a
// parameter writes it on its own host; it goes to each other host once, whose first rank writes it.
// Bringing a unit is nothing to do. Trainables are every rank's own, as in the whole residency.
#include <vector>

#include "core/rng.h"
#include "parallel/collective_errors.h"
#include "parallel/host_segment.h"
#include "parallel/unit_layout.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

namespace {

class HostResidency final : public UnitResidency {
 public:
  HostResidency(Communicator& comm, const ParameterTable& table, ZeroStage stage)
      : comm_(comm),
        table_(table),
        weights_(make_whole_residency(comm, table, stage)),
        segment_(comm) {}

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override {
    weights_->seal(shards, flat);
  }

  void prefetch(UnitId) override {}
  void acquire(UnitId) override {}
  void release(UnitId) noexcept override {}
  void fetch_rows(std::span<const RowFetch> fetches) override {
    for (const RowFetch& fetch : fetches)
      copy_rows(value(fetch.id), fetch);
  }
  int64_t max_held_bytes() const override { return INT64_MAX; }

  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override { return weights_->value_bf16(id); }

  HeldWeights weights() override { return weights_->weights(); }
  void publish_updates() override { weights_->publish_updates(); }
  void read(ParameterId id, std::span<float> values) override { weights_->read(id, values); }
  ResidencyMemory memory() const override {
    ResidencyMemory memory = weights_->memory();
    memory.base_bytes = memory.shared_bytes = segment_.num_bytes();
    return memory;
  }

 private:
  struct Unit {
    bool is_placed = false;
    UnitLayout layout;
    HostSegment::Piece piece;
  };
  Unit& placed(UnitId id);
  std::vector<std::byte> bring(ParameterId id, std::span<const std::byte> bytes);

  Communicator& comm_;
  const ParameterTable& table_;
  std::unique_ptr<UnitResidency> weights_;
  HostSegment segment_;
  std::vector<Unit> units_;
};

HostResidency::Unit& HostResidency::placed(UnitId id) {
  if (units_.size() < static_cast<size_t>(table_.num_units()))
    units_.resize(static_cast<size_t>(table_.num_units()));
  Unit& unit = units_[static_cast<size_t>(id)];
  if (!unit.is_placed) {
    unit.layout = lay_out_frozen(table_, id);
    unit.piece = segment_.grow(table_.unit(id).name, unit.layout.frozen_bytes);
    unit.is_placed = true;
  }
  return unit;
}

void HostResidency::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable()) {
    weights_->publish(id, bytes);
    return;
  }
  const Unit& unit = placed(parameter.spec.unit);
  const auto found = unit.layout.offsets.find(id);
  if (found == unit.layout.offsets.end())
    throw ArgumentError("publish('" + parameter.spec.name +
                        "'): it was declared after a frozen parameter of its unit had been "
                        "published. Declare all of a unit first.");
  const std::vector<std::byte> received = bring(id, bytes);
  // All ranks have come, so nobody reads what was there before; none leaves until it is written.
  run_on_all_ranks(comm_, [&] {
    const int64_t offset = unit.piece.offset + found->second;
    segment_.write(offset, parameter.publisher == comm_.rank() ? bytes : received);
  });
}

/// The bytes on the first rank of a host that is not the publisher's.
std::vector<std::byte> HostResidency::bring(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  const std::span<const int> leaders = segment_.leaders();
  std::vector<std::byte> received;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int rank = 0; rank < comm_.world_size(); ++rank) {
    const bool writes = leaders[static_cast<size_t>(rank)] == rank &&
                        leaders[static_cast<size_t>(parameter.publisher)] != rank;
    if (writes && parameter.publisher == comm_.rank())
      sends.push_back({rank, bytes});
    if (writes && rank == comm_.rank()) {
      received.resize(static_cast<size_t>(parameter.num_bytes));
      receives.push_back({parameter.publisher, received});
    }
  }
  comm_.exchange(sends, receives, parameter.spec.dtype, mix_key(0, parameter.spec.name));
  return received;
}

TensorView HostResidency::value(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable())
    return weights_->value(id);
  const Unit& unit = units_[static_cast<size_t>(parameter.spec.unit)];
  const std::byte* bytes = unit.piece.bytes.data() + unit.layout.offsets.at(id);
  // Views are for readers and writers alike; who writes here faults.
  return TensorView(const_cast<std::byte*>(bytes), parameter.spec.dtype, parameter.spec.shape);
}

}  // namespace

std::unique_ptr<UnitResidency> make_host_residency(Communicator& comm, const ParameterTable& table,
                                                   ZeroStage stage) {
  return std::make_unique<HostResidency>(comm, table, stage);
}

}  // namespace shardtune::parallel
