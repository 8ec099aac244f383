#include "parallel/frozen_swap.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/checked.h"

namespace shardtune::parallel {

namespace {
constexpr int64_t kBlock = io::BlockFile::kBlockBytes;
}  // namespace

std::vector<int64_t> blocks_of_rows(std::span<const int32_t> rows, int64_t row_bytes) {
  std::vector<int64_t> blocks;
  for (const int32_t row : rows) {
    for (int64_t b = row * row_bytes / kBlock; b * kBlock < (row + 1) * row_bytes; ++b)
      blocks.push_back(b);
  }
  std::ranges::sort(blocks);
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  return blocks;
}

int64_t bytes_of_blocks(std::span<const int64_t> blocks, int64_t num_bytes) {
  int64_t total = 0;
  for (const int64_t block : blocks)
    total += std::min(round_up(num_bytes, io::kIoAlignment) - block * kBlock, kBlock);
  return total;
}

io::RegionId FrozenSwap::region_of(const Unit& unit, int64_t part) const {
  return io::RegionId{narrow<int32_t>(static_cast<int64_t>(unit.first) + part)};
}

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
  writing_ = store_.write(region_of(at(id), part), 1, written_.bytes());
}

void FrozenSwap::finish_write() {
  if (writing_)
    store_.wait(*std::exchange(writing_, std::nullopt));
  written_ = io::AlignedBuffer();
}

void FrozenSwap::seal(int read_ahead) {
  finish_write();
  int64_t largest = 0;
  for (const Unit& unit : units_) {
    if (unit.is_placed)
      largest = std::max(largest, store_.extent_bytes(unit.first, unit.num_parts));
  }
  const int num_spares = read_ahead + 1;
  for (int i = 0; i < num_spares; ++i)
    spares_.push_back(store_.add_buffer(largest));
  buffer_bytes_ = peak_buffer_bytes_ = num_spares * largest;
  ahead_bytes_ = read_ahead * largest;
  sealed_ = true;
}

bool FrozenSwap::has_room_for(UnitId id) const {
  const int64_t bytes = is_placed(id) ? store_.extent_bytes(at(id).first, at(id).num_parts) : 0;
  return reading_bytes_ + bytes <= ahead_bytes_;
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
  reading_bytes_ += bytes;
  unit.reading = store_.read(unit.first, unit.num_parts, unit.buffer);
  check_arrived();
}

void FrozenSwap::check_arrived() {
  if (threads_ == io::CheckThreads::kCaller)
    return;
  for (auto& check : store_.begin_checks())
    checks_.start([check = std::move(check)] { check->run(); });
}

void FrozenSwap::acquire(UnitId id) {
  if (!is_placed(id))
    return;
  Unit& unit = at(id);
  if (!unit.is_held)
    prefetch(id);
  if (!unit.reading)
    return;
  reading_bytes_ -= store_.extent_bytes(unit.first, unit.num_parts);
  store_.wait(*std::exchange(unit.reading, std::nullopt), threads_);
  check_arrived();
}

void FrozenSwap::release(UnitId id) noexcept {
  if (!is_placed(id))
    return;
  Unit& unit = at(id);
  if (unit.own.bytes().empty()) {
    spares_.push_back(unit.buffer);  // room for all was made at seal()
  } else {
    buffer_bytes_ -= static_cast<int64_t>(unit.own.bytes().size());
    unit.own = io::AlignedBuffer();
  }
  unit.buffer = {};
  unit.is_held = false;
}

namespace {
/// The part of a row that lies in one block.
struct RowSegment {
  int64_t in_block, in_row, num_bytes;
};
RowSegment segment_of(int64_t row, int64_t row_bytes, int64_t block) {
  const int64_t begin = std::max(row * row_bytes, block * kBlock);
  const int64_t end = std::min((row + 1) * row_bytes, (block + 1) * kBlock);
  return {begin - block * kBlock, begin - row * row_bytes, end - begin};
}
}  // namespace

void FrozenSwap::read_rows(UnitId id, int64_t part, int64_t row_bytes, const RowFetch& fetch) {
  const Unit& unit = at(id);
  const auto copy = [&](const std::byte* block_bytes, int64_t block) {
    for (size_t i = 0; i < fetch.rows.size(); ++i) {
      const RowSegment segment = segment_of(fetch.rows[i], row_bytes, block);
      if (segment.num_bytes > 0)
        std::memcpy(fetch.out.data() + static_cast<int64_t>(i) * row_bytes + segment.in_row,
                    block_bytes + segment.in_block, static_cast<size_t>(segment.num_bytes));
    }
  };
  const std::vector<int64_t> blocks = blocks_of_rows(fetch.rows, row_bytes);
  if (unit.is_held) {
    for (const int64_t block : blocks)
      copy(data(id, part) + block * kBlock, block);
    return;
  }
  finish_write();
  if (row_blocks_.bytes().empty()) {
    row_blocks_ = io::AlignedBuffer(kRowBufferBytes);
    buffer_bytes_ += kRowBufferBytes;
    peak_buffer_bytes_ = std::max(peak_buffer_bytes_, buffer_bytes_);
  }
  const io::RegionId region = region_of(unit, part);
  const auto slot = [&](size_t i) { return row_blocks_.bytes().subspan(i * kBlock, kBlock); };
  constexpr size_t kSlots = kRowBufferBytes / kBlock;
  for (size_t first = 0; first < blocks.size(); first += kSlots) {
    const size_t count = std::min(kSlots, blocks.size() - first);
    std::vector<io::IoTicket> tickets;
    for (size_t i = 0; i < count; ++i) {
      tickets.push_back(store_.read_blocks(region, blocks[first + i], 1, slot(i)));
      read_bytes_ += store_.blocks_bytes(region, blocks[first + i], 1);
    }
    for (size_t i = 0; i < count; ++i) {
      store_.wait(tickets[i]);
      copy(slot(i).data(), blocks[first + i]);
    }
  }
}

std::byte* FrozenSwap::data(UnitId id, int64_t part) const {
  const Unit& unit = at(id);
  SHARDTUNE_ASSERT(unit.is_held && !unit.reading);
  return unit.buffer.data() + store_.offset_in_extent(unit.first, region_of(unit, part));
}

}  // namespace shardtune::parallel
