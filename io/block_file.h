// An asynchronous store of bytes in a SwapFile: named regions, cut into blocks of 64 KiB, each with
// CRC-32C and the number of its write (its generation). Writes and reads are begun, go on while the
// caller computes, and are waited for by ticket; keeping two buffers in turn is the caller's.
//
// A region begins at a multiple of 4 KiB in the file, and regions follow each other without gaps,
// so consecutive regions are one transfer, and their bytes in memory have the layout of the file.
// Checksum, generation, region and index of every block stand in a table in memory: the file never
// outlives the process, and payloads stay contiguous and aligned. So a block that comes back other
// than it was last written is found whatever happened to it: flipped, zeroed, exchanged with
// another, or left at an earlier generation by a write that was lost. What it holds instead is said
// in the message. A memory error in the table itself shows as such a block too, never as wrong
// data.
//
// Errors  WriteError: ENOSPC, EIO and the like in a write; MissingInputError: a read failed, or
//         the file was cut; CorruptBlockError: a block is not what was written. All name file,
//         region and block. After one of them the store gives nothing out any more: every later
//         call throws it again, as an Error of its exit code.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/aligned_buffer.h"
#include "io/block_check.h"
#include "io/swap_file.h"

namespace shardtune::io {

enum class RegionId : int32_t {};
enum class IoTicket : int64_t {};
class BlockFile {
 public:
  static constexpr int64_t kBlockBytes = 64 << 10;   // with a checksum of their own
  static constexpr int64_t kRequestBytes = 1 << 20;  // moved at a time

  /// The file must outlive this object.
  explicit BlockFile(SwapFile& file) : file_(file) {}
  ~BlockFile();
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  /// Adds a region after the last one and takes its space. It holds nothing until it is written.
  RegionId add_region(std::string name, int64_t num_bytes);
  int64_t num_regions() const { return static_cast<int64_t>(regions_.size()); }
  int64_t num_bytes() const { return end_; }

  /// Bytes that `count` regions from `first` take in file and buffer.
  int64_t extent_bytes(RegionId first, int64_t count) const;
  /// Where a region of theirs begins in the buffer.
  int64_t offset_in_extent(RegionId first, RegionId region) const;

  /// Memory for write() and read(), registered with the kernel where it lets us. It lives as long
  /// as the store. Nothing may be under way.
  std::span<std::byte> add_buffer(int64_t num_bytes);

  /// Begins; the buffer (of add_buffer(), at least extent_bytes()) stays untouched until wait().
  IoTicket write(RegionId first, int64_t count, std::span<std::byte> buffer);
  IoTicket read(RegionId first, int64_t count, std::span<std::byte> buffer);
  /// Blocks [first, first + count) of one region; the buffer holds their bytes alone.
  IoTicket read_blocks(RegionId region, int64_t first, int64_t count, std::span<std::byte> buffer);
  /// Bytes that they take in file and buffer.
  int64_t blocks_bytes(RegionId region, int64_t first, int64_t count) const;
  /// Waits for the end of one write or read; of a read, checks every block. Each ticket once.
  void wait(IoTicket ticket, CheckThreads threads = CheckThreads::kAll);
  /// Checks of blocks that have arrived since the last call, of any read: each may run() on another
  /// thread, until the buffer goes; wait() takes what is left of them.
  std::vector<std::shared_ptr<BlockCheck>> begin_checks();

 private:
  struct Region {
    std::string name;
    int64_t num_bytes = 0;
    int64_t offset = 0;
    size_t first_block = 0;
  };
  struct Block {
    uint32_t crc = 0;
    uint32_t previous_crc = 0;
    uint32_t generation = 0;  // 0: never written
  };
  struct Chunk {  // one request of the transfer
    int64_t moved = 0;
    int64_t error = 0;  // errno
    int stalls = 0;     // results that moved less than a page, in a row
    bool done = false;
  };
  struct Position {
    int64_t region = 0;
    int64_t block = 0;
  };
  struct BegunCheck {
    std::vector<Position> blocks;
    std::shared_ptr<BlockCheck> sums;
  };
  struct Transfer {
    IoKind kind = IoKind::kRead;
    int64_t first = 0;
    int64_t count = 0;
    int64_t offset = 0;  // in the file
    std::span<std::byte> bytes;
    std::vector<Chunk> chunks;
    Position next;         // of a read: the first block whose check has not begun
    size_t num_there = 0;  // chunks from the first on that have arrived
    std::vector<BegunCheck> checks;
  };

  const Region& region(RegionId id) const;
  Transfer whole_regions(IoKind kind, RegionId first, int64_t count) const;
  IoTicket begin(Transfer transfer, int64_t bytes, std::span<std::byte> buffer);
  IoRequest request_for(int64_t ticket, const Transfer& transfer, size_t chunk) const;
  void take_result(const IoResult& result);
  static std::span<const std::byte> payload(const Transfer& transfer, const Region& target,
                                            int64_t index);
  void note_written(const Transfer& transfer);
  void begin_check(Transfer& transfer) const;
  void finish_checks(Transfer& transfer, CheckThreads threads) const;
  [[noreturn]] void throw_failed(const Transfer& transfer, size_t chunk) const;
  [[noreturn]] void throw_corrupt(const Region& target, int64_t index,
                                  std::span<const std::byte> bytes, uint32_t found) const;
  /// The block whose bytes have this checksum; empty when none.
  std::string holder_of(uint32_t crc) const;
  std::string place(int64_t file_offset) const;
  void throw_if_failed() const;

  SwapFile& file_;
  std::vector<Region> regions_;
  std::vector<Block> blocks_;
  std::vector<AlignedBuffer> buffers_;
  std::map<int64_t, Transfer> transfers_;
  int64_t next_ticket_ = 0;
  int64_t num_in_flight_ = 0;  // requests
  int64_t end_ = 0;
  std::optional<Error> failure_;
};

}  // namespace shardtune::io
