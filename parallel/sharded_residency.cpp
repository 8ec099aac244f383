// Stage 3: between walks every rank holds its pieces of each unit (parallel/unit_layout.h). A unit
// at work is gathered into a buffer. Buffers of the largest unit's size are taken at seal(), one
// for the unit at work and one for each that is gathered ahead; a unit that comes while all are
// held (a head leased whole) gets a buffer of its own for as long as it stays.
//
// With a file, this rank's pieces live on NVMe (parallel/frozen_swap.h) and are read before a
// gather, on the same thread. The ranks vote then: what one of them cannot read is an AgreedError
// of all, at the same lease, and no byte of the unit moves.
//
// Prefetches run on a thread of their own, one after another. While one is under way nobody else
// may use the communicator: the walk sees to that. After one that failed none runs (the same on all
// ranks, which took part in its vote).
#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "core/checked.h"
#include "core/rng.h"
#include "kernels/elementwise.h"
#include "parallel/background_task.h"
#include "parallel/collective_errors.h"
#include "parallel/frozen_swap.h"
#include "parallel/row_exchange.h"
#include "parallel/unit_layout.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

namespace {

std::byte* bytes_at(const Tensor& tensor, int64_t offset) {
  return static_cast<std::byte*>(tensor.view().raw()) + offset;
}

std::span<std::byte> range_of(std::byte* base, int64_t begin, int64_t end) {
  return {base + begin, static_cast<size_t>(end - begin)};
}

class ShardedResidency final : public UnitResidency {
 public:
  ShardedResidency(Communicator& comm, const ParameterTable& table, const FrozenStorage& storage)
      : comm_(comm), table_(table), max_held_bytes_(storage.max_held_bytes) {
    if (storage.file != nullptr)
      swap_.emplace(*storage.file, io::CheckThreads::kCaller);  // beside the model's loops
  }

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override;

  bool may_prefetch(UnitId, int64_t num_ahead) const override { return num_ahead < read_ahead_; }
  void prefetch(UnitId unit) override;
  void acquire(UnitId unit) override;
  void release(UnitId unit) noexcept override;
  void fetch_rows(std::span<const RowFetch> fetches) override;
  int64_t max_held_bytes() const override { return max_held_bytes_; }

  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;

  HeldWeights weights() override {
    const FlatLayout::Shard& shard = flat_.shard(comm_.rank());
    return {shard.begin, shard.empty() ? std::span<float>() : weights_.span<float>()};
  }
  /// The owners' weights are the only ones: the next gather brings them.
  void publish_updates() override {}
  void read(ParameterId id, std::span<float> values) override;
  ResidencyMemory memory() const override;
  double background_cpu_seconds() override { return task_.cpu_seconds(); }
  StoreTraffic traffic() const override {
    StoreTraffic traffic = moved_;
    if (swap_)
      traffic.units_read = swap_->read_bytes() - moved_.rows_read;
    return traffic;
  }

 private:
  struct Unit {
    bool placed = false;
    UnitLayout layout;
    Tensor shard;           // this rank's frozen bytes; empty once they are stored on NVMe
    size_t num_frozen = 0;  // parameters
    size_t num_published = 0;
    Tensor buffer;  // while at work or fetched ahead
    bool is_spare = false;
  };

  Unit& placed(UnitId id);
  void require_sealed(UnitId id) const {
    if (!sealed_)
      throw ArgumentError("lease of '" + table_.unit(id).name + "': expected seal() before it");
  }
  const Unit& unit_of(ParameterId id) const {
    return units_[static_cast<size_t>(table_.at(id).spec.unit)];
  }
  void scatter_frozen(ParameterId id, std::span<const std::byte> bytes);
  void scatter_weights(ParameterId id, std::span<const std::byte> bytes);
  void take_buffer(Unit& unit);
  void gather(UnitId id);
  void wait_for(UnitId id);
  std::span<const std::byte> own_piece(const Unit& unit, const UnitLayout::Piece& piece) const;
  int64_t row_bytes(ParameterId id) const {
    return table_.at(id).num_bytes / table_.at(id).spec.shape[0];
  }
  std::span<const std::byte> own_row(ParameterId id, int32_t row);
  std::byte* shard_bytes(const Unit& unit) const {
    return swap_ && swap_->is_placed(id_of(unit)) ? swap_->data(id_of(unit), 0)
                                                  : bytes_at(unit.shard, 0);
  }
  UnitId id_of(const Unit& unit) const {
    return UnitId{narrow<int32_t>(static_cast<int64_t>(&unit - units_.data()))};
  }
  void take_back(Unit& unit);
  void store_shard(Unit& unit);

  Communicator& comm_;
  const ParameterTable& table_;
  int64_t max_held_bytes_;
  std::vector<Unit> units_;
  bool sealed_ = false;
  // Trainables published before seal(): their bytes, on the publisher.
  std::vector<std::pair<ParameterId, std::vector<std::byte>>> early_;
  FlatLayout flat_;
  Tensor weights_;  // this rank's shard of the flat layout, fp32
  std::vector<Tensor> spares_;
  int64_t frozen_bytes_ = 0;
  int64_t buffer_bytes_ = 0;
  int64_t peak_buffer_bytes_ = 0;
  std::optional<FrozenSwap> swap_;  // none: shards stay in memory
  std::vector<UnitId> held_for_rows_;
  StoreTraffic moved_;  // between ranks, and rows read
  int read_ahead_ = 1;  // from seal() on
  std::deque<UnitId> pending_;
  BackgroundTask task_;  // last: its end is waited for before anything else dies
};

ShardedResidency::Unit& ShardedResidency::placed(UnitId id) {
  if (units_.size() < static_cast<size_t>(table_.num_units()))
    units_.resize(static_cast<size_t>(table_.num_units()));
  Unit& unit = units_[static_cast<size_t>(id)];
  if (unit.placed)
    return unit;
  unit.placed = true;
  unit.layout = lay_out_frozen(table_, id);
  unit.num_frozen = unit.layout.offsets.size();
  const auto rank = static_cast<size_t>(comm_.rank());
  const int64_t held = unit.layout.cuts[rank + 1] - unit.layout.cuts[rank];
  // Zeros: the gaps between parameters travel with them.
  unit.shard = Tensor::zeros(Shape{held}, DType::kUInt8);
  frozen_bytes_ += held;
  return unit;
}

void ShardedResidency::publish(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  if (!parameter.is_trainable())
    scatter_frozen(id, bytes);
  else if (sealed_)
    scatter_weights(id, bytes);
  else
    early_.emplace_back(id, std::vector<std::byte>(bytes.begin(), bytes.end()));
}

void ShardedResidency::scatter_frozen(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  Unit& unit = placed(parameter.spec.unit);
  const auto found = unit.layout.offsets.find(id);
  if (found == unit.layout.offsets.end())
    throw ArgumentError("publish('" + parameter.spec.name +
                        "'): it was declared after a frozen "
                        "parameter of its unit had been published. Declare all of a unit first.");
  if (swap_ && unit.shard.empty())
    take_back(unit);
  const int64_t first = found->second;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int rank = 0; rank < comm_.world_size(); ++rank) {
    const auto r = static_cast<size_t>(rank);
    const int64_t begin = std::max(first, unit.layout.cuts[r]);
    const int64_t end = std::min(first + parameter.num_bytes, unit.layout.cuts[r + 1]);
    if (begin >= end)
      continue;
    if (parameter.publisher == comm_.rank())
      sends.push_back({rank, bytes.subspan(static_cast<size_t>(begin - first),
                                           static_cast<size_t>(end - begin))});
    if (rank == comm_.rank())
      receives.push_back(
          {parameter.publisher, range_of(bytes_at(unit.shard, 0), begin - unit.layout.cuts[r],
                                         end - unit.layout.cuts[r])});
  }
  comm_.exchange(sends, receives, parameter.spec.dtype, mix_key(0, parameter.spec.name));
  if (swap_ && ++unit.num_published >= unit.num_frozen)
    store_shard(unit);
}

/// A whole unit has been published: its shard goes to NVMe.
void ShardedResidency::store_shard(Unit& unit) {
  const UnitId id = id_of(unit);
  const auto num_bytes = unit.shard.num_bytes();
  if (!swap_->is_placed(id)) {
    const FrozenSwap::Part part{
        table_.unit(id).name + ", shard of rank " + std::to_string(comm_.rank()), num_bytes};
    swap_->place(id, {&part, 1});
  }
  io::AlignedBuffer buffer(num_bytes);
  if (num_bytes > 0)
    std::memcpy(buffer.bytes().data(), unit.shard.view().raw(), static_cast<size_t>(num_bytes));
  swap_->store(id, 0, std::move(buffer));
  unit.shard = Tensor();
  frozen_bytes_ -= num_bytes;
}

/// A parameter is published again: the rest of the shard is needed in memory.
void ShardedResidency::take_back(Unit& unit) {
  const UnitId id = id_of(unit);
  const auto rank = static_cast<size_t>(comm_.rank());
  const int64_t held = unit.layout.cuts[rank + 1] - unit.layout.cuts[rank];
  unit.shard = Tensor(Shape{held}, DType::kUInt8);
  frozen_bytes_ += held;
  swap_->acquire(id);
  if (held > 0)
    std::memcpy(unit.shard.view().raw(), swap_->data(id, 0), static_cast<size_t>(held));
  swap_->release(id);
}

void ShardedResidency::scatter_weights(ParameterId id, std::span<const std::byte> bytes) {
  const DeclaredParameter& parameter = table_.at(id);
  const int64_t fp32 = size_of(DType::kFloat32);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int rank = 0; rank < comm_.world_size(); ++rank) {
    for (const FlatLayout::Piece& piece : flat_.shard(rank).pieces) {
      if (piece.tensor != parameter.trainable)
        continue;
      if (parameter.publisher == comm_.rank())
        sends.push_back({rank, bytes.subspan(static_cast<size_t>(piece.begin * fp32),
                                             static_cast<size_t>(piece.length * fp32))});
      if (rank == comm_.rank()) {
        const int64_t begin = piece.flat_begin - flat_.shard(rank).begin;
        receives.push_back(
            {parameter.publisher, std::as_writable_bytes(elements_of(weights_.span<float>(), begin,
                                                                     begin + piece.length))});
      }
    }
  }
  comm_.exchange(sends, receives, DType::kFloat32, mix_key(0, parameter.spec.name));
}

void ShardedResidency::seal(const ShardLayout&, const FlatLayout& flat) {
  flat_ = flat;
  weights_ = Tensor::zeros(Shape{flat.shard(comm_.rank()).length()}, DType::kFloat32);
  sealed_ = true;
  int64_t largest = 0;
  for (int32_t i = 0; i < table_.num_units(); ++i) {
    Unit& unit = placed(UnitId{i});
    lay_out_trainables(table_, UnitId{i}, flat_, unit.layout);
    largest = std::max(largest, unit.layout.num_bytes());
  }
  read_ahead_ = gather_ahead(largest);
  const int num_spares = read_ahead_ + 1;  // at work, and gathered ahead
  for (int i = 0; i < num_spares; ++i)
    spares_.emplace_back(Shape{largest}, DType::kUInt8);
  buffer_bytes_ = peak_buffer_bytes_ = num_spares * largest;
  if (swap_)
    swap_->seal(1);
  for (const auto& [id, bytes] : early_)
    scatter_weights(id, bytes);
  early_.clear();
}

void ShardedResidency::take_buffer(Unit& unit) {
  unit.is_spare = !spares_.empty();
  if (unit.is_spare) {
    unit.buffer = std::move(spares_.back());
    spares_.pop_back();
    return;
  }
  unit.buffer = Tensor(Shape{unit.layout.num_bytes()}, DType::kUInt8);
  buffer_bytes_ += unit.buffer.num_bytes();
  peak_buffer_bytes_ = std::max(peak_buffer_bytes_, buffer_bytes_);
}

void ShardedResidency::release(UnitId id) noexcept {
  Unit& unit = units_[static_cast<size_t>(id)];
  if (unit.is_spare) {
    spares_.push_back(std::move(unit.buffer));  // room for all was made at seal()
  } else {
    buffer_bytes_ -= unit.buffer.num_bytes();
  }
  unit.buffer = Tensor();
}

std::span<const std::byte> ShardedResidency::own_piece(const Unit& unit,
                                                       const UnitLayout::Piece& piece) const {
  const int64_t size = piece.end - piece.begin;
  if (piece.flat_begin < 0)
    return range_of(shard_bytes(unit), 0, size);
  const int64_t begin = piece.flat_begin - flat_.shard(comm_.rank()).begin;
  return std::as_bytes(
      elements_of(weights_.span<float>(), begin, begin + size / size_of(DType::kFloat32)));
}

// Reads, copies and messages only: it may run on the prefetch thread.
void ShardedResidency::gather(UnitId id) {
  const Unit& unit = units_[static_cast<size_t>(id)];
  if (swap_)
    run_on_all_ranks(comm_, [&] { swap_->acquire(id); });
  std::byte* buffer = bytes_at(unit.buffer, 0);
  std::vector<Block> blocks;
  for (int rank = 0; rank < comm_.world_size(); ++rank) {
    for (const UnitLayout::Piece& piece : unit.layout.pieces(rank, flat_.shard(rank))) {
      blocks.push_back({rank, range_of(buffer, piece.begin, piece.end)});
      if (rank != comm_.rank())
        continue;
      const std::span<const std::byte> own = own_piece(unit, piece);
      std::memcpy(blocks.back().bytes.data(), own.data(), own.size());
    }
  }
  const Traffic before = comm_.exchanged();
  comm_.all_gather_blocks(blocks, DType::kUInt8, mix_key(1, table_.unit(id).name));
  moved_.units += comm_.exchanged() - before;
  if (swap_)
    swap_->release(id);
}

void ShardedResidency::prefetch(UnitId id) {
  require_sealed(id);
  Unit& unit = units_[static_cast<size_t>(id)];
  if (!unit.buffer.empty())
    throw ArgumentError("prefetch('" + table_.unit(id).name +
                        "'): it is leased already. A walk names a unit that stays leased once.");
  take_buffer(unit);
  pending_.push_back(id);
  task_.start([this, id] { gather(id); });
}

/// What was asked for behind a gather that failed is not gathered any more: nobody may take it for
/// there.
void ShardedResidency::wait_for(UnitId id) {
  try {
    task_.wait();
  } catch (...) {
    release(id);
    for (const UnitId later : std::exchange(pending_, {}))
      release(later);
    throw;
  }
}

void ShardedResidency::acquire(UnitId id) {
  require_sealed(id);
  Unit& unit = units_[static_cast<size_t>(id)];
  if (!pending_.empty()) {
    SHARDTUNE_ASSERT(pending_.front() == id);
    pending_.pop_front();
    wait_for(id);
  } else {
    take_buffer(unit);
    gather(id);
  }
  const UnitLayout& layout = unit.layout;
  if (layout.weights_bytes == 0)
    return;
  const Shape shape{layout.weights_bytes / size_of(DType::kFloat32)};
  kernels::cast(TensorView(bytes_at(unit.buffer, layout.frozen_bytes), DType::kFloat32, shape),
                TensorView(bytes_at(unit.buffer, layout.bf16_begin()), DType::kBFloat16, shape));
}

std::span<const std::byte> ShardedResidency::own_row(ParameterId id, int32_t row) {
  const Unit& unit = unit_of(id);
  const auto rank = static_cast<size_t>(comm_.rank());
  const int64_t begin = unit.layout.offsets.at(id) + row * row_bytes(id);
  if (begin < unit.layout.cuts[rank] || begin >= unit.layout.cuts[rank + 1])
    throw ArgumentError("row " + std::to_string(row) + " of '" + table_.at(id).spec.name +
                        "' is not held by rank " + std::to_string(comm_.rank()));
  const UnitId unit_id = table_.at(id).spec.unit;
  if (swap_ && !swap_->is_held(unit_id)) {
    swap_->acquire(unit_id);
    held_for_rows_.push_back(unit_id);
  }
  const int64_t inside = begin - unit.layout.cuts[rank];
  return range_of(shard_bytes(unit), inside, inside + row_bytes(id));
}

void ShardedResidency::fetch_rows(std::span<const RowFetch> fetches) {
  const RowPlaces places{[this](ParameterId id, int32_t row) {
                           const UnitLayout& layout = unit_of(id).layout;
                           return layout.owner_of(layout.offsets.at(id) + row * row_bytes(id));
                         },
                         [this](ParameterId id, int32_t row) { return own_row(id, row); },
                         swap_ ? RowPlaces::Reading::kFallible : RowPlaces::Reading::kSafe};
  const Traffic before = comm_.exchanged();
  const int64_t read_before = swap_ ? swap_->read_bytes() : 0;
  exchange_rows(comm_, fetches, places);
  moved_.rows += comm_.exchanged() - before;
  moved_.rows_read += (swap_ ? swap_->read_bytes() : 0) - read_before;
  for (const UnitId unit : held_for_rows_)
    swap_->release(unit);
  held_for_rows_.clear();
}

TensorView ShardedResidency::value(ParameterId id) const {
  const ParameterSpec& spec = table_.at(id).spec;
  const Unit& unit = unit_of(id);
  return TensorView(bytes_at(unit.buffer, unit.layout.offsets.at(id)), spec.dtype, spec.shape);
}

TensorView ShardedResidency::value_bf16(ParameterId id) const {
  const Unit& unit = unit_of(id);
  const int64_t inside = unit.layout.offsets.at(id) - unit.layout.frozen_bytes;
  return TensorView(bytes_at(unit.buffer, unit.layout.bf16_begin() + inside / 2), DType::kBFloat16,
                    table_.at(id).spec.shape);
}

void ShardedResidency::read(ParameterId id, std::span<float> values) {
  const size_t tensor = table_.at(id).trainable;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int rank = 0; rank < comm_.world_size(); ++rank) {
    for (const FlatLayout::Piece& piece : flat_.shard(rank).pieces) {
      if (piece.tensor != tensor)
        continue;
      if (rank == comm_.rank()) {
        const int64_t begin = piece.flat_begin - flat_.shard(rank).begin;
        sends.push_back(
            {0, std::as_bytes(elements_of(weights_.span<float>(), begin, begin + piece.length))});
      }
      if (comm_.rank() == 0)
        receives.push_back({rank, std::as_writable_bytes(elements_of(values, piece.begin,
                                                                     piece.begin + piece.length))});
    }
  }
  comm_.exchange(sends, receives, DType::kFloat32, mix_key(2, table_.at(id).spec.name));
}

ResidencyMemory ShardedResidency::memory() const {
  ResidencyMemory memory;
  memory.base_bytes = frozen_bytes_;
  memory.weight_bytes = weights_.empty() ? 0 : weights_.num_bytes();
  memory.unit_bytes = peak_buffer_bytes_ + (swap_ ? swap_->peak_buffer_bytes() : 0);
  return memory;
}

}  // namespace

int gather_ahead(int64_t largest_unit_bytes) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  constexpr int64_t kMost = 8;
  return static_cast<int>(
      std::clamp(kBytes / std::max<int64_t>(largest_unit_bytes, 1), int64_t{1}, kMost));
}

std::unique_ptr<UnitResidency> make_sharded_residency(Communicator& comm,
                                                      const ParameterTable& table,
                                                      const FrozenStorage& storage) {
  return std::make_unique<ShardedResidency>(comm, table, storage);
}

}  // namespace shardtune::parallel
