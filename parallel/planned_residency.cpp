#include "parallel/planned_residency.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "core/checked.h"
#include "core/dry_run.h"
#include "io/async_io.h"
#include "parallel/frozen_swap.h"
#include "parallel/host_pages.h"
#include "parallel/sharded_store.h"

namespace shardtune::parallel {

namespace {
int64_t padded(int64_t num_bytes) { return round_up(num_bytes, io::kIoAlignment); }

void hold_beside_pool(int64_t num_bytes) {
  if (DryRun* const dry_run = DryRun::current(); dry_run != nullptr)
    dry_run->hold_beside_pool(num_bytes);
}
}  // namespace

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

PlannedResidency::Unit& PlannedResidency::unit(UnitId id) {
  if (units_.size() < static_cast<size_t>(table_.num_units()))
    units_.resize(static_cast<size_t>(table_.num_units()));
  return units_[static_cast<size_t>(id)];
}

int64_t PlannedResidency::held_bytes(const Unit& of) const {
  const auto rank = static_cast<size_t>(rank_);
  return of.layout.cuts[rank + 1] - of.layout.cuts[rank];
}

PlannedResidency::Unit& PlannedResidency::placed(UnitId id) {
  Unit& result = unit(id);
  if (std::exchange(result.placed, true))
    return result;
  result.layout = lay_out_frozen(table_, id);
  if (gathers_)
    result.shard = Tensor::zeros(Shape{held_bytes(result)}, DType::kUInt8);
  return result;
}

/// Adds a parameter to the rows of the table; what this rank holds of it.
void PlannedResidency::count_frozen(ParameterId id) {
  const DeclaredParameter& parameter = table_.at(id);
  int64_t held = is_on_nvme() ? 0 : parameter.num_bytes;
  if (is_sharded_ && held > 0) {
    const UnitLayout& layout = unit(parameter.spec.unit).layout;
    const int64_t first = layout.offsets.at(id);
    const auto rank = static_cast<size_t>(rank_);
    held = std::max<int64_t>(
        0, std::min(first + held, layout.cuts[rank + 1]) - std::max(first, layout.cuts[rank]));
  }
  const DType dtype = parameter.spec.dtype;
  const bool is_code = dtype == DType::kUInt8 || dtype == DType::kInt8;
  const bool is_part = parameter.spec.part_of != kNoParameter;
  (is_part ? bytes_.scales : is_code ? bytes_.codes : bytes_.dense) += held;
  largest_ = std::max(largest_, padded(parameter.num_bytes));
}

void PlannedResidency::publish_shard(ParameterId id) {
  Unit& of = placed(table_.at(id).spec.unit);
  // A whole unit's shard goes to NVMe.
  if (is_on_nvme() && ++of.num_published == of.layout.offsets.size()) {
    of.extent = padded(of.shard.num_bytes());
    of.shard = Tensor();
  }
}

void PlannedResidency::publish_shared(ParameterId id) {
  const int64_t num_bytes = table_.at(id).num_bytes;
  shared_.emplace(id, AddressRange(num_bytes));
  bytes_.shared += num_bytes;
}

void PlannedResidency::publish(ParameterId id, std::span<const std::byte>) {
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable())
    return;  // stands in the flat buffer
  const PurposeScope purpose(Purpose::kParameters);
  if (is_sharded_)
    publish_shard(id);
  else if (is_on_nvme())
    unit(parameter.spec.unit).extent += padded(parameter.num_bytes);
  else if (place_ == FrozenPlace::kHost)
    publish_shared(id);
  else
    whole_.emplace(id, Tensor(parameter.spec.shape, parameter.spec.dtype));
  count_frozen(id);
}

/// The most bytes that a unit's buffer needs.
int64_t PlannedResidency::lay_out_units() {
  int64_t largest = 0;
  for (int32_t i = 0; i < table_.num_units(); ++i) {
    Unit& of = is_sharded_ ? placed(UnitId{i}) : unit(UnitId{i});
    if (is_sharded_)
      lay_out_trainables(table_, UnitId{i}, flat_, of.layout);
    largest = std::max(largest, gathers_ ? of.layout.num_bytes() : of.layout.weights_bytes / 2);
  }
  return largest;
}

void PlannedResidency::seal(const ShardLayout&, const FlatLayout& flat) {
  const PurposeScope purpose(Purpose::kParameters);
  flat_ = flat;
  bytes_.master =
      (is_sharded_ ? flat.shard(rank_).length() : flat.size()) * size_of(DType::kFloat32);
  if (!maps())
    master_weight_ = Tensor::zeros(Shape{bytes_.master}, DType::kUInt8);
  // At stage 3 the bf16 copies are made in the buffer of a unit.
  if (!is_sharded_) {
    bf16_ = Tensor::zeros(Shape{flat.size()}, DType::kBFloat16);
    bytes_.bf16 = bf16_.num_bytes();
  }
  const int64_t largest = lay_out_units();
  if (maps())
    seal_mapped();
  if (gathers_)
    read_ahead_ = gather_ahead(largest);
  else if (is_on_nvme())
    read_ahead_ = kNvmeReadAhead;
  const int num_spares = read_ahead_ + 1;  // at work, and fetched ahead
  for (int i = 0; is_sharded_ && largest > 0 && i < num_spares; ++i)
    spares_.emplace_back(Shape{largest}, DType::kUInt8);
  bytes_.gather = is_sharded_ ? num_spares * largest : 0;
  if (!is_on_nvme())
    return;
  int64_t largest_extent = 0;
  for (const Unit& of : units_)
    largest_extent = std::max(largest_extent, of.extent);
  // A gather reads its unit's shard itself, one unit after another.
  num_read_spares_ = gathers_ ? 2 : num_spares;
  ahead_bytes_ = (num_read_spares_ - 1) * largest_extent;
  bytes_.read_ahead = num_read_spares_ * largest_extent;
  hold_beside_pool(bytes_.read_ahead);
}

/// This rank's part in pages, beside the bytes that count_frozen() counts.
void PlannedResidency::seal_mapped() {
  bytes_.mapped = bytes_.base() + bytes_.master;
  const FlatLayout::Shard& shard = flat_.shard(rank_);
  int64_t kept = kept_weight_pages(shard).num_bytes();
  for (Unit& of : units_) {
    kept += kept_frozen_pages(of.layout, rank_).num_bytes();
    of.foreign_bytes = total_bytes(brought_frozen_pages(of.layout, rank_)) +
                       total_bytes(brought_weight_pages(of.layout, shard));
  }
  hold_beside_pool(kept - bytes_.mapped);
}

void PlannedResidency::hold_foreign(Unit& of, bool holds) noexcept {
  if (std::exchange(of.is_mapped, holds) == holds)
    return;
  const int64_t change = holds ? of.foreign_bytes : -of.foreign_bytes;
  hold_beside_pool(change);
  foreign_bytes_ += change;
  peak_foreign_bytes_ = std::max(peak_foreign_bytes_, foreign_bytes_);
}

int64_t PlannedResidency::swap_bytes(int rank) const {
  int64_t total = 0;
  for (const Unit& of : units_) {
    const auto r = static_cast<size_t>(rank);
    if (is_on_nvme())
      total += gathers_ ? padded(of.layout.cuts[r + 1] - of.layout.cuts[r]) : of.extent;
  }
  return total;
}

void PlannedResidency::take_read_buffer(Unit& of) {
  if (of.extent == 0 || of.is_read)
    return;
  of.is_read = true;
  if (num_read_spares_ > 0) {
    --num_read_spares_;
  } else {
    of.own_read = of.extent;
    hold_beside_pool(of.own_read);
  }
}

void PlannedResidency::drop_read_buffer(Unit& of) noexcept {
  if (!std::exchange(of.is_read, false))
    return;
  if (of.own_read == 0)
    ++num_read_spares_;
  else
    hold_beside_pool(-std::exchange(of.own_read, 0));
}

void PlannedResidency::count_gather(const Unit& of) {
  const auto bytes_of = [&](int rank) {
    int64_t total = 0;
    for (const UnitLayout::Piece& piece : of.layout.pieces(rank, flat_.shard(rank)))
      total += piece.end - piece.begin;
    return total;
  };
  for (int peer = 0; peer < table_.world_size(); ++peer) {
    const int64_t num_bytes = bytes_of(peer);
    brought_.units += num_bytes;
    if (peer != rank_)
      traffic_.units.received += num_bytes;
  }
  traffic_.units.sent += bytes_of(rank_) * (table_.world_size() - 1);
}

bool PlannedResidency::may_prefetch(UnitId next, int64_t num_ahead) const {
  if (num_ahead < read_ahead_ || gathers_ || !is_on_nvme())
    return num_ahead < read_ahead_;
  int64_t bytes = units_[static_cast<size_t>(next)].extent;
  for (const UnitId id : pending_)
    bytes += units_[static_cast<size_t>(id)].extent;
  return num_ahead < kNvmeMostAhead && bytes <= ahead_bytes_;
}

void PlannedResidency::prefetch(UnitId id) {
  Unit& of = unit(id);
  pending_.push_back(id);
  traffic_.units_read += of.extent;
  take_read_buffer(of);
  if (gathers_) {
    drop_read_buffer(of);  // after the gather
    count_gather(of);
    take_buffer(of, of.layout.num_bytes());
  } else if (maps()) {
    hold_foreign(of, true);
    take_buffer(of, of.layout.weights_bytes / 2);
  }
}

void PlannedResidency::take_buffer(Unit& of, int64_t num_bytes) {
  if (num_bytes == 0)
    return;
  const PurposeScope purpose(Purpose::kParameters);
  of.has_spare = !spares_.empty();
  if (of.has_spare) {
    of.buffer = std::move(spares_.back());
    spares_.pop_back();
  } else {
    of.buffer = Tensor(Shape{num_bytes}, DType::kUInt8);
  }
}

void PlannedResidency::acquire(UnitId id) {
  if (std::erase(pending_, id) > 0)
    return;
  prefetch(id);
  std::erase(pending_, id);
}

void PlannedResidency::release(UnitId id) noexcept {
  Unit& of = units_[static_cast<size_t>(id)];
  drop_read_buffer(of);
  hold_foreign(of, false);
  if (of.has_spare)
    spares_.push_back(std::move(of.buffer));
  of.has_spare = false;
  of.buffer = Tensor();
}

void PlannedResidency::count_row_blocks(const DeclaredParameter& table, const RowFetch& fetch) {
  const int64_t row_bytes = table.num_bytes / table.spec.shape[0];
  traffic_.rows_read += bytes_of_blocks(blocks_of_rows(fetch.rows, row_bytes), table.num_bytes);
  if (std::exchange(has_row_buffer_, true))
    return;
  bytes_.read_ahead += FrozenSwap::kRowBufferBytes;
  hold_beside_pool(FrozenSwap::kRowBufferBytes);
}

void PlannedResidency::fetch_rows(std::span<const RowFetch> fetches) {
  if (maps())
    return;  // copied out of the ranks' memory
  int64_t received = 0;
  for (const RowFetch& fetch : fetches) {
    const DeclaredParameter& parameter = table_.at(fetch.id);
    Unit& of = unit(parameter.spec.unit);
    if (!gathers_) {
      if (is_on_nvme() && !of.is_read)
        count_row_blocks(parameter, fetch);
      continue;
    }
    if (!of.is_read)
      traffic_.rows_read += of.extent;
    take_read_buffer(of);
    constexpr size_t kRequestBytes = 8;  // of a row
    brought_.rows += static_cast<int64_t>(fetch.out.size() + fetch.rows.size() * kRequestBytes);
    const int64_t row_bytes = parameter.num_bytes / parameter.spec.shape[0];
    for (const int32_t row : fetch.rows) {
      if (of.layout.owner_of(of.layout.offsets.at(fetch.id) + row * row_bytes) != rank_)
        received += row_bytes;
    }
  }
  for (const RowFetch& fetch : fetches)
    drop_read_buffer(unit(table_.at(fetch.id).spec.unit));
  // The other ranks are taken to ask for as many.
  traffic_.rows.received += received;
  traffic_.rows.sent += received;
  hold_beside_pool(2 * received);
  hold_beside_pool(-2 * received);
}

int64_t PlannedResidency::max_held_bytes() const {
  return is_sharded_ || is_on_nvme() ? kMaxHeldBytes : INT64_MAX;
}

TensorView PlannedResidency::value(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  const ParameterSpec& spec = parameter.spec;
  if (parameter.is_trainable() && !is_sharded_)
    return {reinterpret_cast<const float*>(master_weight_.view().raw()) +
                flat_.offset(parameter.trainable),
            spec.dtype, spec.shape};
  if (const auto found = whole_.find(id); found != whole_.end())
    return found->second.view();
  if (const auto found = shared_.find(id); found != shared_.end())
    return {found->second.data(), spec.dtype, spec.shape};
  // Bytes that are brought: an address that a dry run does not look behind.
  return {static_cast<const void*>(this), spec.dtype, spec.shape};
}

TensorView PlannedResidency::value_bf16(ParameterId id) const {
  const DeclaredParameter& parameter = table_.at(id);
  if (is_sharded_)
    return {static_cast<const void*>(this), DType::kBFloat16, parameter.spec.shape};
  return {bf16_.data<BFloat16>() + flat_.offset(parameter.trainable), DType::kBFloat16,
          parameter.spec.shape};
}

}  // namespace shardtune::parallel
