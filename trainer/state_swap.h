// Optimizer states on NVMe: the store behind OptimizerStates when offload_optimizer says nvme.
// Segments are cut into pieces of at most 1 MiB per state, and consecutive pieces form groups of at
// most 8 MiB or an eighth of the whole, the unit of transfer. Three buffers take turns: while one
// group is stepped, the next is read and the one before is written. The caller's arithmetic is
// elementwise, so cuts change no bits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/swap_file.h"

namespace shardtune::trainer {

/// How offloaded bytes are stored. Other than the defaults in tests alone.
struct SwapSettings {
  io::SwapMode mode = io::SwapMode::kAuto;
  int64_t measured_bytes = 64 << 20;  // written and read to measure the speed, at most
  std::function<std::unique_ptr<io::AsyncIo>(std::unique_ptr<io::AsyncIo>)> wrap;
};

class StateSwap {
 public:
  struct Segment {
    std::string name;  // for messages: the tensor
    int64_t numel = 0;
  };
  /// Elements [begin, end) of a segment.
  struct Piece {
    size_t segment = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };
  /// Works on one piece; a span per state, of the piece's length.
  using Body = std::function<void(const Piece&, std::span<const std::span<float>> states)>;

  /// Takes the space of all states in the file and writes zeros. `file` must outlive this object.
  /// Errors  those of io/block_file.h, here and below
  StateSwap(io::SwapFile& file, std::span<const Segment> segments,
            const std::vector<std::string>& state_names);

  /// Hands every piece of the segments for which `wanted` is true to body and stores what it made
  /// of the states. An error leaves pieces behind that belong to no step: the store is unusable.
  void update(const std::function<bool(size_t segment)>& wanted, const Body& body);
  /// The same for every piece without reading: body fills the states.
  void overwrite(const Body& body);
  /// Hands the pieces of one segment to body, in order.
  void read(size_t segment, const Body& body);

  int64_t num_groups() const { return static_cast<int64_t>(cut_.groups.size()); }
  int64_t buffer_bytes() const { return kNumBuffers * cut_.largest_group; }
  /// Moved by update() so far; written by overwrite() too.
  int64_t read_bytes() const { return read_bytes_; }
  int64_t written_bytes() const { return written_bytes_; }
  /// Before anything is made: bytes of all states with their padding, and buffer_bytes().
  static int64_t bytes_of(std::span<const Segment> segments, int64_t num_states);
  static int64_t buffer_bytes_of(std::span<const Segment> segments, int64_t num_states) {
    return kNumBuffers * cut(segments, num_states).largest_group;
  }

 private:
  static constexpr size_t kNumBuffers = 3;
  enum class Access { kUpdate, kOverwrite };
  struct Group {
    size_t first_piece = 0;
    size_t num_pieces = 0;
  };
  struct Cut {
    std::vector<Piece> pieces;
    std::vector<Group> groups;
    int64_t largest_group = 0;  // bytes
  };
  struct Slot {  // one buffer and what is under way with it
    std::span<std::byte> bytes;
    std::optional<io::IoTicket> reading;
    std::optional<io::IoTicket> writing;
  };

  static Cut cut(std::span<const Segment> segments, int64_t num_states);
  io::RegionId first_region(size_t piece) const;
  int64_t num_regions(const Group& group) const;
  void run(const std::vector<size_t>& groups, Access access, const Body& body);
  void begin_read(size_t index, Slot& slot);
  void work(const Group& group, Slot& slot, const Body& body) const;
  void finish(std::optional<io::IoTicket>& ticket);

  io::BlockFile store_;
  int64_t num_states_ = 0;
  Cut cut_;
  int64_t read_bytes_ = 0;
  int64_t written_bytes_ = 0;
  Slot slots_[kNumBuffers];
};

}  // namespace shardtune::trainer
