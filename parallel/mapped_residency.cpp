// Stage 3 on one host whose ranks share memory: each unit lies once in that memory
// (parallel/host_segment.h), cut over the ranks as parallel/unit_layout.h says. A rank keeps its
// own part mapped; the other ranks' parts it maps itself, on the prefetch thread, while the unit is
// at work, and gives them back after. Nothing is copied but bf16 weights, and no rank waits for
// another inside of a walk: one without work leaves it at once.
//
// Trained weights lie there too, flat and in fp32. Their owners change them between walks; the
// others may look from publish_updates() on, which no rank leaves before all have come, and no
// longer than to the end of a step's last walk: the exchange of its gradients comes after it.
#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/elementwise.h"
#include "parallel/background_task.h"
#include "parallel/collective_errors.h"
#include "parallel/host_pages.h"
#include "parallel/host_segment.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

namespace {

class MappedResidency final : public UnitResidency {
 public:
  MappedResidency(Communicator& comm, const ParameterTable& table, int64_t max_held_bytes)
      : comm_(comm),
        table_(table),
        max_held_bytes_(max_held_bytes),
        segment_(comm, HostSegment::Use::kShards) {}

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override;

  void prefetch(UnitId unit) override;
  void acquire(UnitId unit) override;
  void release(UnitId unit) noexcept override;
  bool needs_whole_walks() const override { return false; }
  void fetch_rows(std::span<const RowFetch> fetches) override;
  int64_t max_held_bytes() const override { return max_held_bytes_; }

  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;

  HeldWeights weights() override { return {flat_.shard(comm_.rank()).begin, own_weights_}; }
  void publish_updates() override { comm_.barrier(); }
  void read(ParameterId id, std::span<float> values) override;
  ResidencyMemory memory() const override;
  double background_cpu_seconds() override { return task_.cpu_seconds(); }

 private:
  struct Unit {
    bool placed = false;
    bool is_brought = false;
    UnitLayout layout;
    HostSegment::Piece piece;
    std::vector<std::span<const std::byte>> foreign;  // pages of other ranks' parts
    int64_t foreign_bytes = 0;
    Tensor buffer;  // bf16 weights while at work or brought ahead; empty without trainables
    bool is_spare = false;
  };

  Unit& placed(UnitId id);
  const Unit& unit_of(ParameterId id) const {
    return units_[static_cast<size_t>(table_.at(id).spec.unit)];
  }
  Unit& begin_bringing(UnitId id);
  void note_unit_bytes(int64_t change);
  int64_t weight_offset(ParameterId id) const {
    return flat_.offset(table_.at(id).trainable) * size_of(DType::kFloat32);
  }
  void write_weights(ParameterId id, std::span<const std::byte> bytes);
  void map_own_weights();
  void find_foreign(Unit& unit) const;
  void take_buffer(Unit& unit);
  void make_bf16(Unit& unit) const;

  Communicator& comm_;
  const ParameterTable& table_;
  int64_t max_held_bytes_;
  HostSegment segment_;
  std::vector<Unit> units_;
  bool sealed_ = false;
  // Trainables published before seal(): their bytes, on the publisher.
  std::vector<std::pair<ParameterId, std::vector<std::byte>>> early_;
  FlatLayout flat_;
  HostSegment::Piece weights_;  // flat
  std::span<float> own_weights_;
  std::vector<Tensor> spares_;
  int64_t frozen_bytes_ = 0;
  int64_t unit_bytes_ = 0;
  int64_t peak_unit_bytes_ = 0;
  std::optional<UnitId> pending_;
  BackgroundTask task_;  // last: its end is waited for before anything else dies
};

std::byte* bytes_at(const Tensor& tensor, int64_t offset) {
  return static_cast<std::byte*>(tensor.view().raw()) + offset;
}

std::span<const std::byte> part_of(const HostSegment::Piece& piece, const PageRange& pages) {
  return {piece.bytes.data() + pages.begin, static_cast<size_t>(pages.num_bytes())};
}

MappedResidency::Unit& MappedResidency::placed(UnitId id) {
  if (units_.size() < static_cast<size_t>(table_.num_units()))
    units_.resize(static_cast<size_t>(table_.num_units()));
  Unit& unit = units_[static_cast<size_t>(id)];
  if (unit.placed)
    return unit;
  unit.layout = lay_out_frozen(table_, id);
  const auto rank = static_cast<size_t>(comm_.rank());
  const int64_t begin = unit.layout.cuts[rank];
  const int64_t end = unit.layout.cuts[rank + 1];
  unit.piece = segment_.grow_in_parts(table_.unit(id).name, unit.layout.frozen_bytes, begin, end);
  frozen_bytes_ += end - begin;
  unit.placed = true;
  return unit;
}

void MappedResidency::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable() && !sealed_) {
    early_.emplace_back(id, std::vector<std::byte>(bytes.begin(), bytes.end()));
    return;
  }
  if (!parameter.is_trainable()) {
    const Unit& unit = placed(parameter.spec.unit);
    if (!unit.layout.offsets.contains(id))
      throw ArgumentError("publish('" + parameter.spec.name +
                          "'): it was declared after a frozen parameter of its unit had been "
                          "published. Declare all of a unit first.");
  }
  comm_.barrier();  // nobody reads what was there before
  // Nobody leaves before it is written.
  run_on_all_ranks(comm_, [&] {
    if (parameter.is_trainable())
      write_weights(id, bytes);
    else
      segment_.write(unit_of(id).piece.offset + unit_of(id).layout.offsets.at(id), bytes);
  });
}

void MappedResidency::write_weights(ParameterId id, std::span<const std::byte> bytes) {
  segment_.write(weights_.offset + weight_offset(id), bytes);
}

void MappedResidency::seal(const ShardLayout&, const FlatLayout& flat) {
  flat_ = flat;
  sealed_ = true;
  int64_t largest = 0;
  for (int32_t i = 0; i < table_.num_units(); ++i) {
    Unit& unit = placed(UnitId{i});
    lay_out_trainables(table_, UnitId{i}, flat_, unit.layout);
    largest = std::max(largest, unit.layout.weights_bytes / 2);
  }
  map_own_weights();
  run_on_all_ranks(comm_, [&] {
    for (const auto& [id, bytes] : early_)
      write_weights(id, bytes);
  });
  early_.clear();
  for (Unit& unit : units_) {
    HostSegment::bring(part_of(unit.piece, kept_frozen_pages(unit.layout, comm_.rank())));
    find_foreign(unit);
    // Pages come in groups, some of which are others'.
    for (const std::span<const std::byte> pages : unit.foreign)
      HostSegment::let_go(pages);
  }
  constexpr int kNumSpares = 2;  // at work, and brought ahead
  for (int i = 0; largest > 0 && i < kNumSpares; ++i)
    spares_.emplace_back(Shape{largest}, DType::kUInt8);
  note_unit_bytes(static_cast<int64_t>(spares_.size()) * largest);
}

void MappedResidency::map_own_weights() {
  const FlatLayout::Shard& own = flat_.shard(comm_.rank());
  const int64_t fp32 = size_of(DType::kFloat32);
  weights_ = segment_.grow_in_parts("trained weights", flat_.size() * fp32, own.begin * fp32,
                                    own.end * fp32);
  if (own.empty())
    return;
  const PageRange kept = kept_weight_pages(own);
  const std::span<std::byte> pages = segment_.make_writable(part_of(weights_, kept));
  HostSegment::bring(pages);
  own_weights_ = {reinterpret_cast<float*>(pages.data() + (own.begin * fp32 - kept.begin)),
                  static_cast<size_t>(own.length())};
}

void MappedResidency::find_foreign(Unit& unit) const {
  for (const PageRange& pages : brought_frozen_pages(unit.layout, comm_.rank()))
    unit.foreign.push_back(part_of(unit.piece, pages));
  for (const PageRange& pages : brought_weight_pages(unit.layout, flat_.shard(comm_.rank())))
    unit.foreign.push_back(part_of(weights_, pages));
  for (const std::span<const std::byte> pages : unit.foreign)
    unit.foreign_bytes += static_cast<int64_t>(pages.size());
}

void MappedResidency::note_unit_bytes(int64_t change) {
  unit_bytes_ += change;
  peak_unit_bytes_ = std::max(peak_unit_bytes_, unit_bytes_);
}

void MappedResidency::take_buffer(Unit& unit) {
  if (unit.layout.weights_bytes == 0)
    return;
  unit.is_spare = !spares_.empty();
  if (unit.is_spare) {
    unit.buffer = std::move(spares_.back());
    spares_.pop_back();
    return;
  }
  unit.buffer = Tensor(Shape{unit.layout.weights_bytes / 2}, DType::kUInt8);
  note_unit_bytes(unit.buffer.num_bytes());
}

MappedResidency::Unit& MappedResidency::begin_bringing(UnitId id) {
  if (!sealed_)
    throw ArgumentError("lease of '" + table_.unit(id).name + "': expected seal() before it");
  Unit& unit = units_[static_cast<size_t>(id)];
  if (pending_ || unit.is_brought)
    throw ArgumentError("prefetch('" + table_.unit(id).name +
                        "'): it is leased already. A walk names a unit that stays leased once.");
  unit.is_brought = true;
  take_buffer(unit);
  note_unit_bytes(unit.foreign_bytes);
  return unit;
}

void MappedResidency::prefetch(UnitId id) {
  const Unit& unit = begin_bringing(id);
  pending_ = id;
  task_.start([&unit] {
    for (const std::span<const std::byte> pages : unit.foreign)
      HostSegment::bring(pages);
  });
}

void MappedResidency::acquire(UnitId id) {
  if (pending_) {
    SHARDTUNE_ASSERT(pending_ == id);
    pending_.reset();
    task_.wait();
  } else {
    for (const std::span<const std::byte> pages : begin_bringing(id).foreign)
      HostSegment::bring(pages);
  }
  make_bf16(units_[static_cast<size_t>(id)]);
}

void MappedResidency::make_bf16(Unit& unit) const {
  const int64_t fp32 = size_of(DType::kFloat32);
  for (const UnitLayout::Run& run : unit.layout.runs) {
    const Shape shape{run.flat_end - run.flat_begin};
    const int64_t target = (run.offset - unit.layout.frozen_bytes) / 2;
    kernels::cast(TensorView(weights_.bytes.data() + run.flat_begin * fp32, DType::kFloat32, shape),
                  TensorView(bytes_at(unit.buffer, target), DType::kBFloat16, shape));
  }
}

void MappedResidency::release(UnitId id) noexcept {
  Unit& unit = units_[static_cast<size_t>(id)];
  for (const std::span<const std::byte> pages : unit.foreign)
    HostSegment::let_go(pages);
  unit_bytes_ -= unit.foreign_bytes;
  unit.is_brought = false;
  if (unit.buffer.empty())
    return;
  if (unit.is_spare)
    spares_.push_back(std::move(unit.buffer));  // room for both was made at seal()
  else
    unit_bytes_ -= unit.buffer.num_bytes();
  unit.buffer = Tensor();
}

// Without mapping them: few rows of a table would bring many of its pages.
void MappedResidency::fetch_rows(std::span<const RowFetch> fetches) {
  for (const RowFetch& fetch : fetches) {
    const Unit& unit = unit_of(fetch.id);
    const DeclaredParameter& parameter = table_.at(fetch.id);
    const int64_t row_bytes = parameter.num_bytes / parameter.spec.shape[0];
    const int64_t table = unit.piece.offset + unit.layout.offsets.at(fetch.id);
    for (size_t i = 0; i < fetch.rows.size(); ++i)
      segment_.read(
          table + fetch.rows[i] * row_bytes,
          fetch.out.subspan(i * static_cast<size_t>(row_bytes), static_cast<size_t>(row_bytes)));
  }
}

TensorView MappedResidency::value(ParameterId id) const {
  const ParameterSpec& spec = table_.at(id).spec;
  const Unit& unit = unit_of(id);
  const std::byte* bytes = table_.at(id).is_trainable()
                               ? weights_.bytes.data() + weight_offset(id)
                               : unit.piece.bytes.data() + unit.layout.offsets.at(id);
  // Views are for readers and writers alike; who writes here faults, but for own weights.
  return TensorView(const_cast<std::byte*>(bytes), spec.dtype, spec.shape);
}

TensorView MappedResidency::value_bf16(ParameterId id) const {
  const Unit& unit = unit_of(id);
  const int64_t inside = unit.layout.offsets.at(id) - unit.layout.frozen_bytes;
  return TensorView(bytes_at(unit.buffer, inside / 2), DType::kBFloat16, table_.at(id).spec.shape);
}

void MappedResidency::read(ParameterId id, std::span<float> values) {
  comm_.barrier();  // what the owners wrote is there
  run_on_all_ranks(comm_, [&] {
    segment_.read(weights_.offset + weight_offset(id), std::as_writable_bytes(values));
  });
}

ResidencyMemory MappedResidency::memory() const {
  ResidencyMemory memory;
  memory.base_bytes = frozen_bytes_;
  memory.weight_bytes = static_cast<int64_t>(own_weights_.size_bytes());
  memory.unit_bytes = peak_unit_bytes_;
  return memory;
}

}  // namespace

std::unique_ptr<UnitResidency> make_mapped_residency(Communicator& comm,
                                                     const ParameterTable& table,
                                                     int64_t max_held_bytes) {
  return std::make_unique<MappedResidency>(comm, table, max_held_bytes);
}

}  // namespace shardtune::parallel
