#include "parallel/frozen_swap.h"

#include <algorithm>
#include <utility>

#include "core/checked.h"

namespace shardtune::parallel {

bool FrozenSwap::is_placed(UnitId unit) const {
  const auto index = static_cast<size_t>(unit);
  return index < units_.size() && units_[index].is_placed;
}

void FrozenSwap::place(UnitId id, std::span<const Part> parts) {
  SHARDTUNE_ASSERT(!is_placed(id) && !sealed_);
  const auto index = static_cast<size_t>(id);
  units_.resize(std::max(units_.size(), index + 1));
  Unit& unit = units_[index];
  unit.is_placed = true;
  unit.first = io::RegionId{narrow<int32_t>(store_.num_regions())};
  unit.num_parts = static_cast<int64_t>(parts.size());
  for (const Part& part : parts)
    store_.add_region(part.name, part.num_bytes);
}

void FrozenSwap::store(UnitId id, int64_t part, io::AlignedBuffer bytes) {
  finish_write();
  written_ = std::move(bytes);
  const io::RegionId region{narrow<int32_t>(static_cast<int64_t>(at(id).first) + part)};
  writing_ = store_.write(region, 1, written_.bytes());
}

void FrozenSwap::finish_write() {
  if (writing_)
    store_.wait(*std::exchange(writing_, std::nullopt));
  written_ = io::AlignedBuffer();
}

void FrozenSwap::seal() {
  finish_write();
  int64_t largest = 0;
  for (const Unit& unit : units_) {
    if (unit.is_placed)
      largest = std::max(largest, store_.extent_bytes(unit.first, unit.num_parts));
  }
  constexpr int kNumSpares = 2;
  for (int i = 0; i < kNumSpares; ++i)
    spares_.push_back(store_.add_buffer(largest));
  buffer_bytes_ = peak_buffer_bytes_ = kNumSpares * largest;
  sealed_ = true;
}

void FrozenSwap::prefetch(UnitId id) {
  if (!is_placed(id))
    return;
  if (!sealed_)
    throw ArgumentError("frozen units on NVMe: expected seal() before a unit is brought");
  finish_write();
  Unit& unit = at(id);
  if (unit.is_held)
    throw ArgumentError("frozen units on NVMe: unit " + std::to_string(static_cast<int>(id)) +
                        " is held already");
  const int64_t bytes = store_.extent_bytes(unit.first, unit.num_parts);
  if (!spares_.empty()) {
    unit.buffer = spares_.back();
    spares_.pop_back();
  } else {
    unit.own = io::AlignedBuffer(bytes);
    unit.buffer = unit.own.bytes();
    buffer_bytes_ += bytes;
    peak_buffer_bytes_ = std::max(peak_buffer_bytes_, buffer_bytes_);
  }
  unit.is_held = true;
  read_bytes_ += bytes;
  unit.reading = store_.read(unit.first, unit.num_parts, unit.buffer);
}

void FrozenSwap::acquire(UnitId id) {
  if (!is_placed(id))
    return;
  Unit& unit = at(id);
  if (!unit.is_held)
    prefetch(id);
  if (unit.reading)
    store_.wait(*std::exchange(unit.reading, std::nullopt));
}

void FrozenSwap::release(UnitId id) noexcept {
  if (!is_placed(id))
    return;
  Unit& unit = at(id);
  if (unit.own.bytes().empty()) {
    spares_.push_back(unit.buffer);  // room for both was made at seal()
  } else {
    buffer_bytes_ -= static_cast<int64_t>(unit.own.bytes().size());
    unit.own = io::AlignedBuffer();
  }
  unit.buffer = {};
  unit.is_held = false;
}

std::byte* FrozenSwap::data(UnitId id, int64_t part) const {
  const Unit& unit = at(id);
  SHARDTUNE_ASSERT(unit.is_held && !unit.reading);
  const io::RegionId region{narrow<int32_t>(static_cast<int64_t>(unit.first) + part)};
  return unit.buffer.data() + store_.offset_in_extent(unit.first, region);
}

}  // namespace shardtune::parallel
