// Frozen bytes of units on NVMe: stored as they are published, brought into a buffer before a unit
// works, let go after. Buffers of the largest unit's size are taken at seal(): one for the unit at
// work, one for each that is read ahead; a unit that comes while all are held gets a buffer of its
// own for as long as it stays. Rows of a table are read by the blocks that hold them. A unit's
// parts stand side by side in file and buffer, each at a multiple of 4 KiB. One thread at a time.
// Errors  those of io/block_file.h, from every function that may wait
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/parameter_store.h"
#include "io/block_file.h"
#include "parallel/background_task.h"

namespace shardtune::parallel {

/// Blocks of a matrix that hold some of its rows, ascending, each once.
std::vector<int64_t> blocks_of_rows(std::span<const int32_t> rows, int64_t row_bytes);
/// What reading them moves, of a matrix of num_bytes.
int64_t bytes_of_blocks(std::span<const int64_t> blocks, int64_t num_bytes);

class FrozenSwap {
 public:
  /// Blocks that read_rows() has in memory at once.
  static constexpr int64_t kRowBufferBytes = 2 << 20;

  struct Part {
    std::string name;
    int64_t num_bytes = 0;
  };

  /// The file must outlive this object. `threads` check what acquire() waits for; kAll: beside them
  /// a thread of its own checks what has arrived for units ahead, kCaller: acquire() is called
  /// beside the model's work already.
  explicit FrozenSwap(io::SwapFile& file, io::CheckThreads threads = io::CheckThreads::kAll)
      : threads_(threads), store_(file) {}

  bool is_placed(UnitId unit) const;
  /// Takes space for a unit; once.
  void place(UnitId unit, std::span<const Part> parts);
  /// Begins to write a part's bytes. A unit that is held keeps the old ones until it is released.
  void store(UnitId unit, int64_t part, io::AlignedBuffer bytes);
  /// After every place(). Takes the buffers.
  void seal(int read_ahead);

  /// Whether the unit and those that are being read are together no larger than the buffers for
  /// units ahead.
  bool has_room_for(UnitId unit) const;
  /// Begins to read a unit. ArgumentError: it is held.
  void prefetch(UnitId unit);
  /// Brings a unit, or waits for its prefetch.
  void acquire(UnitId unit);
  void release(UnitId unit) noexcept;
  bool is_held(UnitId unit) const { return is_placed(unit) && at(unit).is_held; }
  /// Copies rows of a part, a matrix of row_bytes a row, to `out` one after another: from the unit
  /// where it is held, else from the blocks that hold them, each read once.
  void read_rows(UnitId unit, int64_t part, int64_t row_bytes, const RowFetch& fetch);
  /// A part of an acquired unit.
  std::byte* data(UnitId unit, int64_t part) const;

  int64_t stored_bytes() const { return store_.num_bytes(); }
  /// Of every prefetch(), and of read_rows(), so far.
  int64_t read_bytes() const { return read_bytes_; }
  int64_t peak_buffer_bytes() const { return peak_buffer_bytes_; }
  /// Processor time of the thread that checks what has arrived before acquire() asks for it.
  double check_cpu_seconds() { return checks_.cpu_seconds(); }

 private:
  struct Unit {
    bool is_placed = false;
    bool is_held = false;
    io::RegionId first{};
    int64_t num_parts = 0;
    std::span<std::byte> buffer;
    io::AlignedBuffer own;  // where no spare was left
    std::optional<io::IoTicket> reading;
  };

  Unit& at(UnitId unit) { return units_[static_cast<size_t>(unit)]; }
  const Unit& at(UnitId unit) const { return units_[static_cast<size_t>(unit)]; }
  io::RegionId region_of(const Unit& unit, int64_t part) const;
  void finish_write();
  void check_arrived();

  std::vector<Unit> units_;
  std::vector<std::span<std::byte>> spares_;
  io::AlignedBuffer row_blocks_;  // from the first read_rows() on
  io::AlignedBuffer written_;     // what `writing_` reads from
  std::optional<io::IoTicket> writing_;
  bool sealed_ = false;
  int64_t ahead_bytes_ = 0;    // of the buffers for units ahead
  int64_t reading_bytes_ = 0;  // of units that nobody has waited for
  int64_t buffer_bytes_ = 0;
  int64_t peak_buffer_bytes_ = 0;
  int64_t read_bytes_ = 0;
  io::CheckThreads threads_;
  io::BlockFile store_;    // it waits for what is under way with the buffers above
  BackgroundTask checks_;  // last: it reads those buffers
};

}  // namespace shardtune::parallel
