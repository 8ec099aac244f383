// Moves bytes between the ranks of one host through memory that they share: processes, or threads
// of one process (tests). One copy in, one copy out, in pieces that stay in the caches.
//
// What lies in the memory, per rank: two mailboxes, where a call's header and a payload of up to
// kCarriedBytes are shown to all; a ring that all others read (all_gather, broadcast); and per
// ordered pair of ranks a ring for the messages of exchange. Rings are byte streams: both sides
// know every size from the headers, so nothing but data is in them.
//
// A rank that waits spins for some microseconds (yields where ranks exceed cores), then sleeps in a
// futex, so that it never keeps a core from the rank it waits for.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace shardtune::parallel {

enum class Cores {
  kOnePerRank,  // a waiting rank may spin
  kShared,      // fewer cores than ranks: it yields
};

/// What a rank that waits does now and then: `look` throws when waiting is in vain. Sleeps between
/// are at most `period` long.
struct Meanwhile {
  std::function<void()> look;
  std::chrono::microseconds period{50'000};
};

class SharedMemoryTransport {
 public:
  static constexpr int kMaxRanks = 64;

  /// Size of the memory for so many ranks: 5 MB for 4, 18 MB for 8, at most 100 MB. Only what is
  /// used gets pages.
  static size_t segment_bytes(int num_ranks);

  /// `segment` is zero when the first rank comes, 64-byte aligned, and outlives the transport.
  SharedMemoryTransport(std::span<std::byte> segment, int rank, int num_ranks, Cores cores,
                        Meanwhile meanwhile);
  SharedMemoryTransport(const SharedMemoryTransport&) = delete;
  SharedMemoryTransport& operator=(const SharedMemoryTransport&) = delete;

  /// Shows `own` to all ranks and waits for all of theirs. A small payload of the call goes along,
  /// and the first piece of each pair's messages; the operation that follows then finds them. No
  /// rank leaves before all have come.
  void meet(const CallHeader& own, const CarriedPayload& payload, std::span<CallHeader> all);

  /// blocks[r] is where rank r's `sent` goes, of the same size; blocks[rank] may be `sent` itself.
  void all_gather(std::span<const std::byte> sent, std::span<std::byte* const> blocks);
  void broadcast(std::span<std::byte> bytes, int root);
  /// Messages to other ranks, matched in order per pair. Peers are ranks of this transport.
  void exchange(std::span<const Send> sends, std::span<const Receive> receives);

  /// This rank makes no more calls. Others that wait for it find it in lost_rank().
  void leave() noexcept;
  /// A rank that left before the call that runs here, -1 when none.
  int lost_rank() const;

 private:
  struct Bell;
  struct Counter;
  struct Mailbox;
  template <typename Byte>
  struct Stream {
    std::vector<std::span<Byte>> parts;
    size_t part = 0;        // the first that is not done
    size_t offset = 0;      // in it
    size_t left = 0;        // bytes
    uint64_t position = 0;  // in the ring; kept from call to call
  };

  Bell& bell(int rank) const;
  Counter& left_after(int rank) const;
  Mailbox& mailbox(int rank, uint64_t meeting) const;
  Counter& gather_written(int writer) const;
  Counter& gather_read(int writer, int reader) const;
  std::byte* gather_data(int writer) const;
  Counter& pair_written(int from, int to) const;
  Counter& pair_read(int from, int to) const;
  std::byte* pair_data(int from, int to) const;
  size_t pair_index(int from, int to) const;

  template <typename Ready>
  void wait_until(const Ready& ready);
  template <typename Ready>
  void sleep_unless(const Ready& ready);
  void wake(int rank) const;
  void wake_all() const;

  size_t gather_room(size_t wanted);
  bool give_piece(std::span<const std::byte> bytes, size_t& given, std::byte* copy);
  bool take_piece(int writer, std::span<std::byte> bytes, size_t& taken);
  void stage(std::span<const Send> sends);
  bool push_piece(int peer);
  bool pull_piece(int peer);
  bool exchange_can_move() const;
  void copy_out(std::byte* to, const std::byte* from, size_t num_bytes) const;

  std::byte* base_;
  int rank_;
  int num_ranks_;
  Cores cores_;
  Meanwhile meanwhile_;
  size_t gather_ring_bytes_;
  size_t pair_ring_bytes_;
  uint64_t num_meetings_ = 0;
  size_t num_carried_bytes_ = 0;                   // of the call that runs
  bool is_staged_ = false;                         // outgoing_ is set for the exchange that follows
  bool past_caches_ = false;                       // of the call that runs
  uint64_t written_ = 0;                           // positions in the gather rings
  std::vector<uint64_t> read_;                     // [writer]
  uint64_t slowest_reader_ = 0;                    // a lower bound
  std::vector<size_t> taken_;                      // [writer], of the all_gather that runs
  std::vector<Stream<const std::byte>> outgoing_;  // [peer]
  std::vector<Stream<std::byte>> incoming_;
};

}  // namespace shardtune::parallel
