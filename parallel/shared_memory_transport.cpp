#include "parallel/shared_memory_transport.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/checked.h"
#include "core/memory_copy.h"

namespace shardtune::parallel {

namespace {
constexpr size_t kLine = 64;
constexpr size_t kCarriedBytes = 4096;
constexpr size_t kPieceBytes = size_t{64} << 10;
// From here on a destination is too large for the caches to keep.
constexpr size_t kPastCachesBytes = size_t{16} << 20;
// Small enough to stay in the second-level cache beside what is copied.
constexpr size_t kLargestRingBytes = size_t{256} << 10;

size_t gather_ring_size(int num_ranks) {
  return std::clamp<size_t>((size_t{32} << 20) / static_cast<size_t>(num_ranks), kPieceBytes * 2,
                            kLargestRingBytes) /
         kLine * kLine;
}

size_t pair_ring_size(int num_ranks) {
  const auto n = static_cast<size_t>(num_ranks);
  return std::clamp<size_t>((size_t{32} << 20) / std::max<size_t>(n * (n - 1), 1), size_t{16} << 10,
                            kLargestRingBytes) /
         kLine * kLine;
}

size_t to_line(size_t num_bytes) { return (num_bytes + kLine - 1) / kLine * kLine; }
}  // namespace

// A rank sleeps on `rung`; whoever makes something ready for it rings when `sleeping` is set.
struct alignas(kLine) SharedMemoryTransport::Bell {
  std::atomic<uint32_t> rung;
  std::atomic<uint32_t> sleeping;
};

struct alignas(kLine) SharedMemoryTransport::Counter {
  std::atomic<uint64_t> value;
};

// Two per rank, used in turn: a rank writes its mailbox of call k + 2 only after all ranks have
// come to call k + 1, and so have read what it showed in call k.
struct alignas(kLine) SharedMemoryTransport::Mailbox {
  std::atomic<uint64_t> meeting;
  CallHeader header;
  std::byte payload[kCarriedBytes];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// Order in memory: bells, left_after, mailboxes, gather counters (1 + n per writer), pair counters
// (2 per pair), gather rings, pair rings.
size_t SharedMemoryTransport::segment_bytes(int num_ranks) {
  SHARDTUNE_ASSERT(num_ranks >= 1 && num_ranks <= kMaxRanks);
  const auto n = static_cast<size_t>(num_ranks);
  const size_t counters = n + n * (1 + n) + 2 * n * n;
  return n * sizeof(Bell) + counters * sizeof(Counter) + 2 * n * sizeof(Mailbox) +
         n * gather_ring_size(num_ranks) + n * n * pair_ring_size(num_ranks);
}

SharedMemoryTransport::Bell& SharedMemoryTransport::bell(int rank) const {
  return reinterpret_cast<Bell*>(base_)[rank];
}

SharedMemoryTransport::Counter& SharedMemoryTransport::left_after(int rank) const {
  std::byte* begin = base_ + static_cast<size_t>(num_ranks_) * sizeof(Bell);
  return reinterpret_cast<Counter*>(begin)[rank];
}

SharedMemoryTransport::Mailbox& SharedMemoryTransport::mailbox(int rank, uint64_t meeting) const {
  auto* begin = reinterpret_cast<std::byte*>(&left_after(num_ranks_));
  return reinterpret_cast<Mailbox*>(begin)[2 * static_cast<size_t>(rank) + meeting % 2];
}

SharedMemoryTransport::Counter& SharedMemoryTransport::gather_written(int writer) const {
  auto* begin = reinterpret_cast<std::byte*>(&mailbox(num_ranks_, 0));
  return reinterpret_cast<Counter*>(begin)[writer * (1 + num_ranks_)];
}

SharedMemoryTransport::Counter& SharedMemoryTransport::gather_read(int writer, int reader) const {
  return (&gather_written(writer))[1 + reader];
}

size_t SharedMemoryTransport::pair_index(int from, int to) const {
  return static_cast<size_t>(from) * static_cast<size_t>(num_ranks_) + static_cast<size_t>(to);
}

SharedMemoryTransport::Counter& SharedMemoryTransport::pair_written(int from, int to) const {
  return (&gather_written(num_ranks_))[2 * pair_index(from, to)];
}

SharedMemoryTransport::Counter& SharedMemoryTransport::pair_read(int from, int to) const {
  return (&pair_written(from, to))[1];
}

std::byte* SharedMemoryTransport::gather_data(int writer) const {
  auto* begin = reinterpret_cast<std::byte*>(&pair_written(num_ranks_, 0));
  return begin + static_cast<size_t>(writer) * gather_ring_bytes_;
}

std::byte* SharedMemoryTransport::pair_data(int from, int to) const {
  return gather_data(num_ranks_) + pair_index(from, to) * pair_ring_bytes_;
}

SharedMemoryTransport::SharedMemoryTransport(std::span<std::byte> segment, int rank, int num_ranks,
                                             Cores cores, Meanwhile meanwhile)
    : base_(segment.data()),
      rank_(rank),
      num_ranks_(num_ranks),
      cores_(cores),
      meanwhile_(std::move(meanwhile)),
      gather_ring_bytes_(gather_ring_size(num_ranks)),
      pair_ring_bytes_(pair_ring_size(num_ranks)),
      read_(static_cast<size_t>(num_ranks), 0),
      taken_(static_cast<size_t>(num_ranks), 0),
      outgoing_(static_cast<size_t>(num_ranks)),
      incoming_(static_cast<size_t>(num_ranks)) {
  SHARDTUNE_ASSERT(segment.size() >= segment_bytes(num_ranks));
  SHARDTUNE_ASSERT(pair_data(num_ranks, 0) - base_ ==
                   static_cast<std::ptrdiff_t>(segment_bytes(num_ranks)));
}

// Waiting. A rank sets `sleeping` and then looks once more; the other side publishes and then looks
// at `sleeping`. Both in the one order of sequentially consistent operations, so one of them sees
// the other. The timeout bounds what `look` can miss.
template <typename Ready>
void SharedMemoryTransport::sleep_unless(const Ready& ready) {
  Bell& own = bell(rank_);
  const uint32_t rung = own.rung.load();
  own.sleeping.store(1);
  if (!ready()) {
    const timespec timeout{0, std::chrono::nanoseconds(meanwhile_.period).count()};
    syscall(SYS_futex, &own.rung, FUTEX_WAIT, rung, &timeout, nullptr, 0);
  }
  own.sleeping.store(0);
}

template <typename Ready>
void SharedMemoryTransport::wait_until(const Ready& ready) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSpin = std::chrono::microseconds(20);
  constexpr int kSpinsPerLook = 32;
  constexpr int kYields = 16;
  if (ready())
    return;
  if (cores_ == Cores::kOnePerRank) {
    const auto end = Clock::now() + kSpin;
    do {
      for (int i = 0; i < kSpinsPerLook; ++i) {
        if (ready())
          return;
        pause_in_spin();
      }
    } while (Clock::now() < end);
  } else {
    for (int i = 0; i < kYields; ++i) {
      if (ready())
        return;
      sched_yield();
    }
  }
  while (!ready()) {
    meanwhile_.look();
    sleep_unless(ready);
  }
}

void SharedMemoryTransport::wake(int rank) const {
  Bell& other = bell(rank);
  if (other.sleeping.load() == 0)
    return;
  other.rung.fetch_add(1);
  syscall(SYS_futex, &other.rung, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void SharedMemoryTransport::wake_all() const {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (rank != rank_)
      wake(rank);
  }
}

void SharedMemoryTransport::leave() noexcept {
  left_after(rank_).value.store(num_meetings_ + 1);
  wake_all();
}

int SharedMemoryTransport::lost_rank() const {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    const uint64_t left = left_after(rank).value.load();
    if (left != 0 && left <= num_meetings_)
      return rank;
  }
  return -1;
}

void SharedMemoryTransport::meet(const CallHeader& own, const CarriedPayload& payload,
                                 std::span<CallHeader> all) {
  ++num_meetings_;
  num_carried_bytes_ = payload.num_bytes <= kCarriedBytes ? payload.num_bytes : 0;
  Mailbox& box = mailbox(rank_, num_meetings_);
  box.header = own;
  if (num_carried_bytes_ > 0 && !payload.mine.empty())
    std::memcpy(box.payload, payload.mine.data(), num_carried_bytes_);
  if (!payload.sends.empty()) {
    stage(payload.sends);
    for (int peer = 0; peer < num_ranks_; ++peer)
      push_piece(peer);
  }
  box.meeting.store(num_meetings_);
  wake_all();
  int rank = 0;
  wait_until([&] {
    while (rank < num_ranks_ && mailbox(rank, num_meetings_).meeting.load() == num_meetings_)
      ++rank;
    return rank == num_ranks_;
  });
  for (rank = 0; rank < num_ranks_; ++rank)
    all[static_cast<size_t>(rank)] = mailbox(rank, num_meetings_).header;
}

void SharedMemoryTransport::copy_out(std::byte* to, const std::byte* from, size_t num_bytes) const {
  if (past_caches_)
    copy_past_caches(to, from, num_bytes);
  else
    std::memcpy(to, from, num_bytes);
}

// How much of `wanted` fits into this rank's gather ring now, for the slowest of its readers.
size_t SharedMemoryTransport::gather_room(size_t wanted) {
  if (gather_ring_bytes_ - (written_ - slowest_reader_) < wanted) {
    slowest_reader_ = written_;
    for (int reader = 0; reader < num_ranks_; ++reader) {
      if (reader != rank_)
        slowest_reader_ = std::min(slowest_reader_, gather_read(rank_, reader).value.load());
    }
  }
  return std::min(wanted, gather_ring_bytes_ - (written_ - slowest_reader_));
}

// Writes the next piece of `bytes` into this rank's gather ring, and to `copy` too unless null: the
// piece is in the caches then. The last piece ends on a line, as it does for the readers.
bool SharedMemoryTransport::give_piece(std::span<const std::byte> bytes, size_t& given,
                                       std::byte* copy) {
  const size_t begin = written_ % gather_ring_bytes_;
  const size_t wanted = std::min({bytes.size() - given, kPieceBytes, gather_ring_bytes_ - begin});
  const size_t count = wanted == 0 ? 0 : gather_room(wanted);
  if (count == 0)
    return false;
  std::memcpy(gather_data(rank_) + begin, bytes.data() + given, count);
  const bool last = given + count == bytes.size();
  written_ = last ? to_line(written_ + count) : written_ + count;
  gather_written(rank_).value.store(written_);
  wake_all();
  if (copy != nullptr)
    copy_out(copy + given, bytes.data() + given, count);
  given += count;
  return true;
}

bool SharedMemoryTransport::take_piece(int writer, std::span<std::byte> bytes, size_t& taken) {
  uint64_t& position = read_[static_cast<size_t>(writer)];
  const size_t begin = position % gather_ring_bytes_;
  const size_t there = gather_written(writer).value.load() - position;
  const size_t count =
      std::min({bytes.size() - taken, there, kPieceBytes, gather_ring_bytes_ - begin});
  if (count == 0)
    return false;
  copy_out(bytes.data() + taken, gather_data(writer) + begin, count);
  taken += count;
  position = taken == bytes.size() ? to_line(position + count) : position + count;
  gather_read(writer, rank_).value.store(position);
  wake(writer);
  return true;
}

void SharedMemoryTransport::all_gather(std::span<const std::byte> sent,
                                       std::span<std::byte* const> blocks) {
  const size_t size = sent.size();
  if (num_carried_bytes_ > 0) {
    for (int rank = 0; rank < num_ranks_; ++rank)
      std::memcpy(blocks[static_cast<size_t>(rank)], mailbox(rank, num_meetings_).payload, size);
    num_carried_bytes_ = 0;
    return;
  }
  past_caches_ = size * static_cast<size_t>(num_ranks_) >= kPastCachesBytes;
  std::byte* own = blocks[static_cast<size_t>(rank_)];
  if (own == sent.data())
    own = nullptr;
  size_t given = 0;
  std::ranges::fill(taken_, 0);
  taken_[static_cast<size_t>(rank_)] = size;
  const auto all_taken = [&] {
    return std::ranges::all_of(taken_, [&](size_t taken) { return taken == size; });
  };
  while (given < size || !all_taken()) {
    bool moved = give_piece(sent, given, own);
    for (int i = 1; i < num_ranks_; ++i) {
      const int writer = (rank_ + i) % num_ranks_;
      moved |= take_piece(writer, {blocks[static_cast<size_t>(writer)], size},
                          taken_[static_cast<size_t>(writer)]);
    }
    if (moved)
      continue;
    wait_until([&] {
      if (given < size && gather_room(1) > 0)
        return true;
      for (int writer = 0; writer < num_ranks_; ++writer) {
        const auto w = static_cast<size_t>(writer);
        if (taken_[w] < size && gather_written(writer).value.load() > read_[w])
          return true;
      }
      return false;
    });
  }
}

void SharedMemoryTransport::broadcast(std::span<std::byte> bytes, int root) {
  if (num_carried_bytes_ > 0) {
    if (rank_ != root)
      std::memcpy(bytes.data(), mailbox(root, num_meetings_).payload, bytes.size());
    num_carried_bytes_ = 0;
    return;
  }
  past_caches_ = bytes.size() >= kPastCachesBytes;
  size_t done = 0;
  const auto root_index = static_cast<size_t>(root);
  while (done < bytes.size()) {
    const bool moved =
        rank_ == root ? give_piece(bytes, done, nullptr) : take_piece(root, bytes, done);
    if (!moved)
      wait_until([&] {
        return rank_ == root ? gather_room(1) > 0
                             : gather_written(root).value.load() > read_[root_index];
      });
  }
}

namespace {
// Calls move(part, count) over the next `count` bytes of a stream. True when it is at its end.
template <typename Stream, typename Move>
bool advance(Stream& stream, size_t count, const Move& move) {
  stream.left -= count;
  while (count > 0) {
    const auto& part = stream.parts[stream.part];
    const size_t now = std::min(count, part.size() - stream.offset);
    move(part.data() + stream.offset, now);
    stream.offset += now;
    count -= now;
    if (stream.offset == part.size()) {
      ++stream.part;
      stream.offset = 0;
    }
  }
  return stream.left == 0;
}

template <typename Stream>
void reset(std::vector<Stream>& streams) {
  for (Stream& stream : streams) {
    stream.parts.clear();
    stream.part = stream.offset = stream.left = 0;
  }
}
}  // namespace

void SharedMemoryTransport::stage(std::span<const Send> sends) {
  reset(outgoing_);
  for (const Send& send : sends) {
    auto& stream = outgoing_[static_cast<size_t>(send.peer)];
    stream.parts.push_back(send.bytes);
    stream.left += send.bytes.size();
  }
  is_staged_ = true;
}

bool SharedMemoryTransport::push_piece(int peer) {
  auto& stream = outgoing_[static_cast<size_t>(peer)];
  if (stream.left == 0)
    return false;
  const size_t begin = stream.position % pair_ring_bytes_;
  const size_t room = pair_ring_bytes_ - (stream.position - pair_read(rank_, peer).value.load());
  const size_t count = std::min({stream.left, room, kPieceBytes, pair_ring_bytes_ - begin});
  if (count == 0)
    return false;
  std::byte* to = pair_data(rank_, peer) + begin;
  const bool last = advance(stream, count, [&](const std::byte* part, size_t size) {
    std::memcpy(to, part, size);
    to += size;
  });
  stream.position = last ? to_line(stream.position + count) : stream.position + count;
  pair_written(rank_, peer).value.store(stream.position);
  wake(peer);
  return true;
}

bool SharedMemoryTransport::pull_piece(int peer) {
  auto& stream = incoming_[static_cast<size_t>(peer)];
  if (stream.left == 0)
    return false;
  const size_t begin = stream.position % pair_ring_bytes_;
  const size_t there = pair_written(peer, rank_).value.load() - stream.position;
  const size_t count = std::min({stream.left, there, kPieceBytes, pair_ring_bytes_ - begin});
  if (count == 0)
    return false;
  const std::byte* from = pair_data(peer, rank_) + begin;
  const bool last = advance(stream, count, [&](std::byte* part, size_t size) {
    copy_out(part, from, size);
    from += size;
  });
  stream.position = last ? to_line(stream.position + count) : stream.position + count;
  pair_read(peer, rank_).value.store(stream.position);
  wake(peer);
  return true;
}

bool SharedMemoryTransport::exchange_can_move() const {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    const auto& out = outgoing_[static_cast<size_t>(peer)];
    if (out.left > 0 && out.position - pair_read(rank_, peer).value.load() < pair_ring_bytes_)
      return true;
    const auto& in = incoming_[static_cast<size_t>(peer)];
    if (in.left > 0 && pair_written(peer, rank_).value.load() > in.position)
      return true;
  }
  return false;
}

void SharedMemoryTransport::exchange(std::span<const Send> sends,
                                     std::span<const Receive> receives) {
  if (!is_staged_)
    stage(sends);
  is_staged_ = false;
  reset(incoming_);
  size_t incoming = 0;
  for (const Receive& receive : receives) {
    auto& stream = incoming_[static_cast<size_t>(receive.peer)];
    stream.parts.push_back(receive.bytes);
    stream.left += receive.bytes.size();
    incoming += receive.bytes.size();
  }
  past_caches_ = incoming >= kPastCachesBytes;
  const auto is_done = [](const auto& stream) { return stream.left == 0; };
  while (!std::ranges::all_of(outgoing_, is_done) || !std::ranges::all_of(incoming_, is_done)) {
    bool moved = false;
    for (int i = 1; i < num_ranks_; ++i) {
      moved |= push_piece((rank_ + i) % num_ranks_);
      moved |= pull_piece((rank_ + num_ranks_ - i) % num_ranks_);
    }
    if (!moved)
      wait_until([&] { return exchange_can_move(); });
  }
}

}  // namespace shardtune::parallel
