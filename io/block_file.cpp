#include "io/block_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/parallel_for.h"
#include "io/file.h"

namespace shardtune::io {
namespace {

constexpr int64_t kChunkBits = 24;  // chunks of one transfer: below 2^24, 16 TiB

int64_t padded(int64_t num_bytes) { return round_up(num_bytes, kIoAlignment); }

std::string hex(uint32_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 28; shift >= 0; shift -= 4)
    text += kDigits[(value >> shift) & 15u];
  return text;
}

}  // namespace

BlockFile::~BlockFile() {
  // The kernel may still be writing into the buffers.
  try {
    while (num_in_flight_ > 0) {
      file_.io().wait_one();
      --num_in_flight_;
    }
    file_.io().register_buffers({});
  } catch (const Error&) {
    // Nothing is under way any more, or nobody can tell.
  }
}

RegionId BlockFile::add_region(std::string name, int64_t num_bytes) {
  throw_if_failed();
  if (num_bytes < 0)
    throw ArgumentError("block store: " + name + ": expected a size from 0, found " +
                        std::to_string(num_bytes));
  const int64_t next = checked_add(end_, padded(num_bytes));
  file_.reserve(next);
  regions_.push_back({std::move(name), num_bytes, end_, blocks_.size()});
  blocks_.resize(blocks_.size() + static_cast<size_t>(ceil_div(num_bytes, kBlockBytes)));
  end_ = next;
  return RegionId{narrow<int32_t>(num_regions() - 1)};
}

const BlockFile::Region& BlockFile::region(RegionId id) const {
  const auto index = static_cast<int64_t>(id);
  if (index < 0 || index >= num_regions())
    throw ArgumentError(file_.path() + ": expected a region below " +
                        std::to_string(num_regions()) + ", found " + std::to_string(index));
  return regions_[static_cast<size_t>(index)];
}

int64_t BlockFile::extent_bytes(RegionId first, int64_t count) const {
  if (count <= 0)
    return 0;
  const Region& last = region(RegionId{narrow<int32_t>(static_cast<int64_t>(first) + count - 1)});
  return last.offset + padded(last.num_bytes) - region(first).offset;
}

int64_t BlockFile::offset_in_extent(RegionId first, RegionId id) const {
  return region(id).offset - region(first).offset;
}

std::span<std::byte> BlockFile::add_buffer(int64_t num_bytes) {
  SHARDTUNE_ASSERT(num_in_flight_ == 0);
  buffers_.emplace_back(num_bytes);
  std::vector<std::span<std::byte>> all;
  for (const AlignedBuffer& buffer : buffers_)
    all.push_back(buffer.bytes());
  file_.io().register_buffers(all);
  return buffers_.back().bytes();
}

IoTicket BlockFile::write(RegionId first, int64_t count, std::span<std::byte> buffer) {
  Transfer transfer = whole_regions(IoKind::kWrite, first, count);
  return begin(std::move(transfer), extent_bytes(first, count), buffer);
}

IoTicket BlockFile::read(RegionId first, int64_t count, std::span<std::byte> buffer) {
  Transfer transfer = whole_regions(IoKind::kRead, first, count);
  return begin(std::move(transfer), extent_bytes(first, count), buffer);
}

BlockFile::Transfer BlockFile::whole_regions(IoKind kind, RegionId first, int64_t count) const {
  Transfer transfer;
  transfer.kind = kind;
  transfer.first = static_cast<int64_t>(first);
  transfer.count = count;
  transfer.next.region = transfer.first;
  transfer.offset = count > 0 ? region(first).offset : 0;
  return transfer;
}

int64_t BlockFile::blocks_bytes(RegionId id, int64_t first, int64_t count) const {
  const Region& target = region(id);
  if (first < 0 || count < 1 || first + count > ceil_div(target.num_bytes, kBlockBytes))
    throw ArgumentError(file_.path() + ": " + target.name + ": expected blocks below " +
                        std::to_string(ceil_div(target.num_bytes, kBlockBytes)) + ", found [" +
                        std::to_string(first) + ", " + std::to_string(first + count) + ")");
  return std::min(padded(target.num_bytes), (first + count) * kBlockBytes) - first * kBlockBytes;
}

IoTicket BlockFile::read_blocks(RegionId id, int64_t first, int64_t count,
                                std::span<std::byte> buffer) {
  const int64_t bytes = blocks_bytes(id, first, count);
  Transfer transfer = whole_regions(IoKind::kRead, id, 1);
  transfer.next.block = first;
  transfer.offset += first * kBlockBytes;
  return begin(std::move(transfer), bytes, buffer);
}

IoTicket BlockFile::begin(Transfer transfer, int64_t bytes, std::span<std::byte> buffer) {
  throw_if_failed();
  if (static_cast<int64_t>(buffer.size()) < bytes)
    throw ArgumentError(file_.path() + ": expected a buffer of " + std::to_string(bytes) +
                        " bytes, found " + std::to_string(buffer.size()));
  transfer.bytes = buffer.first(static_cast<size_t>(bytes));
  transfer.chunks.resize(static_cast<size_t>(ceil_div(bytes, kRequestBytes)));
  if (transfer.kind == IoKind::kWrite)
    note_written(transfer);
  const int64_t ticket = next_ticket_++;
  std::vector<IoRequest> requests;
  for (size_t i = 0; i < transfer.chunks.size(); ++i)
    requests.push_back(request_for(ticket, transfer, i));
  num_in_flight_ += static_cast<int64_t>(requests.size());
  transfers_.emplace(ticket, std::move(transfer));
  file_.io().submit(requests);
  return IoTicket{ticket};
}

void BlockFile::note_written(const Transfer& transfer) {
  for (int64_t r = transfer.first; r < transfer.first + transfer.count; ++r) {
    const Region& target = regions_[static_cast<size_t>(r)];
    const auto num_blocks = ceil_div(target.num_bytes, kBlockBytes);
    parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Block& block = blocks_[target.first_block + static_cast<size_t>(i)];
        block.previous_crc = std::exchange(block.crc, crc32c(payload(transfer, target, i)));
        ++block.generation;
      }
    });
  }
}

std::span<const std::byte> BlockFile::payload(const Transfer& transfer, const Region& target,
                                              int64_t index) {
  const int64_t begin = target.offset - transfer.offset + index * kBlockBytes;
  const int64_t length = std::min(kBlockBytes, target.num_bytes - index * kBlockBytes);
  return transfer.bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(length));
}

IoRequest BlockFile::request_for(int64_t ticket, const Transfer& transfer, size_t chunk) const {
  const int64_t begin = static_cast<int64_t>(chunk) * kRequestBytes + transfer.chunks[chunk].moved;
  const int64_t end = std::min(static_cast<int64_t>(transfer.bytes.size()),
                               (static_cast<int64_t>(chunk) + 1) * kRequestBytes);
  return {transfer.kind, transfer.offset + begin,
          transfer.bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
          (static_cast<uint64_t>(ticket) << kChunkBits) | chunk};
}

void BlockFile::take_result(const IoResult& result) {
  const auto ticket = static_cast<int64_t>(result.tag >> kChunkBits);
  const auto index = static_cast<size_t>(result.tag & ((uint64_t{1} << kChunkBits) - 1));
  Transfer& transfer = transfers_.at(ticket);
  Chunk& chunk = transfer.chunks[index];
  const auto wanted = static_cast<int64_t>(request_for(ticket, transfer, index).bytes.size());
  const bool is_part = result.count > 0 && result.count < wanted;
  chunk.stalls = is_part && result.count < kIoAlignment ? chunk.stalls + 1 : 0;
  // A file that ends inside of a page gives the same part of it for ever.
  constexpr int kMaxStalls = 8;
  const bool again =
      result.count == -EINTR || result.count == -EAGAIN || (is_part && chunk.stalls < kMaxStalls);
  if (again) {
    // Direct I/O goes on at a multiple of the alignment; the rest of a sector is moved once more.
    chunk.moved += std::max<int64_t>(0, result.count) / kIoAlignment * kIoAlignment;
    const IoRequest rest = request_for(ticket, transfer, index);
    file_.io().submit({&rest, 1});
    return;
  }
  --num_in_flight_;
  chunk.done = true;
  if (result.count == wanted)
    chunk.moved += wanted;
  else if (result.count < 0)
    chunk.error = -result.count;
  else
    chunk.error = transfer.kind == IoKind::kWrite ? ENOSPC : ENODATA;
}

void BlockFile::wait(IoTicket ticket, CheckThreads threads) {
  throw_if_failed();
  const auto found = transfers_.find(static_cast<int64_t>(ticket));
  if (found == transfers_.end())
    throw ArgumentError(file_.path() + ": waited twice for ticket " +
                        std::to_string(static_cast<int64_t>(ticket)));
  Transfer& transfer = found->second;
  try {
    for (size_t& there = transfer.num_there; there < transfer.chunks.size();) {
      while (!transfer.chunks[there].done)
        take_result(file_.io().wait_one());
      if (transfer.chunks[there].error != 0)
        throw_failed(transfer, there);
      ++there;
      const bool is_next_there = there < transfer.chunks.size() && transfer.chunks[there].done &&
                                 transfer.chunks[there].error == 0;
      // What has arrived is checked while the rest is on its way.
      if (transfer.kind == IoKind::kRead && !is_next_there) {
        begin_check(transfer);
        finish_checks(transfer, threads);
      }
    }
    finish_checks(transfer, threads);
  } catch (const Error& error) {
    failure_ = error;
    throw;
  }
  transfers_.erase(found);
}

std::vector<std::shared_ptr<BlockCheck>> BlockFile::begin_checks() {
  throw_if_failed();
  while (const auto result = file_.io().try_one())
    take_result(*result);
  std::vector<std::shared_ptr<BlockCheck>> begun;
  for (auto& [ticket, transfer] : transfers_) {
    if (transfer.kind != IoKind::kRead)
      continue;
    const size_t before = transfer.checks.size();
    for (size_t& there = transfer.num_there; there < transfer.chunks.size() &&
                                             transfer.chunks[there].done &&
                                             transfer.chunks[there].error == 0;)
      ++there;
    begin_check(transfer);
    if (transfer.checks.size() > before)
      begun.push_back(transfer.checks.back().sums);
  }
  return begun;
}

void BlockFile::begin_check(Transfer& transfer) const {
  const int64_t arrived = std::min(static_cast<int64_t>(transfer.num_there) * kRequestBytes,
                                   static_cast<int64_t>(transfer.bytes.size()));
  Position& next = transfer.next;
  std::vector<Position> blocks;
  std::vector<std::span<const std::byte>> payloads;
  for (bool more = true; more && next.region < transfer.first + transfer.count;) {
    const Region& target = regions_[static_cast<size_t>(next.region)];
    for (; next.block * kBlockBytes < target.num_bytes; ++next.block) {
      const int64_t end = std::min((next.block + 1) * kBlockBytes, target.num_bytes);
      more = target.offset - transfer.offset + end <= arrived;
      if (!more)
        break;
      blocks.push_back(next);
      payloads.push_back(payload(transfer, target, next.block));
    }
    if (more)
      next = {next.region + 1, 0};
  }
  if (!blocks.empty())
    transfer.checks.push_back(
        {std::move(blocks), std::make_shared<BlockCheck>(std::move(payloads))});
}

void BlockFile::finish_checks(Transfer& transfer, CheckThreads threads) const {
  for (const BegunCheck& check : std::exchange(transfer.checks, {})) {
    const std::vector<uint32_t>& found = check.sums->finish(threads);
    for (size_t i = 0; i < found.size(); ++i) {
      const Position& at = check.blocks[i];
      const Region& target = regions_[static_cast<size_t>(at.region)];
      const Block& block = blocks_[target.first_block + static_cast<size_t>(at.block)];
      if (block.generation == 0 || found[i] != block.crc)
        throw_corrupt(target, at.block, payload(transfer, target, at.block), found[i]);
    }
  }
}

void BlockFile::throw_if_failed() const {
  if (failure_)
    throw *failure_;
}

std::string BlockFile::place(int64_t file_offset) const {
  auto after = std::upper_bound(regions_.begin(), regions_.end(), file_offset,
                                [](int64_t offset, const Region& r) { return offset < r.offset; });
  if (after == regions_.begin())
    return "byte " + std::to_string(file_offset);
  const Region& target = *std::prev(after);
  return target.name + ", block " + std::to_string((file_offset - target.offset) / kBlockBytes);
}

void BlockFile::throw_failed(const Transfer& transfer, size_t chunk) const {
  const int64_t offset =
      transfer.offset + static_cast<int64_t>(chunk) * kRequestBytes + transfer.chunks[chunk].moved;
  const auto error = static_cast<int>(transfer.chunks[chunk].error);
  const std::string where = file_.path() + ": " + place(offset) + ": ";
  if (transfer.kind == IoKind::kWrite)
    throw WriteError(where + "expected to write at byte " + std::to_string(offset) +
                     ", found: " + std::strerror(error) +
                     ". Free space or check the device (dmesg), then resume.");
  throw MissingInputError(
      where + "expected to read at byte " + std::to_string(offset) + ", found: " +
      (error == ENODATA ? "the file ends before it, something cut it" : std::strerror(error)) +
      ". Check the device (dmesg), then resume.");
}

void BlockFile::throw_corrupt(const Region& target, int64_t index, std::span<const std::byte> bytes,
                              uint32_t found) const {
  const Block& block = blocks_[target.first_block + static_cast<size_t>(index)];
  const std::string where =
      file_.path() + ": " + target.name + ", block " + std::to_string(index) + ": ";
  if (block.generation == 0)
    throw CorruptBlockError(where + "expected a block, found one that was never written.");
  std::string holds = "bytes with checksum " + hex(found);
  const bool zero =
      std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
  if (zero)
    holds = "zeros";
  else if (block.generation > 1 && found == block.previous_crc)
    holds =
        "the bytes of generation " + std::to_string(block.generation - 1) + " (a write was lost)";
  else if (const std::string other = holder_of(found); !other.empty())
    holds = "the bytes of " + other;
  throw CorruptBlockError(where + "expected generation " + std::to_string(block.generation) +
                          " with checksum " + hex(block.crc) + ", found " + holds +
                          ". The device or its memory is at fault: check it, then resume from the "
                          "last checkpoint.");
}

std::string BlockFile::holder_of(uint32_t crc) const {
  for (const Region& candidate : regions_) {
    for (int64_t i = 0; i * kBlockBytes < candidate.num_bytes; ++i) {
      const Block& block = blocks_[candidate.first_block + static_cast<size_t>(i)];
      if (block.generation > 0 && block.crc == crc)
        return candidate.name + ", block " + std::to_string(i);
    }
  }
  return "";
}

}  // namespace shardtune::io
