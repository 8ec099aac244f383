// The part of every communicator that does not depend on the transport: numbering calls, comparing
// them over ranks before data moves, and the operations built from the four primitives.
#include "parallel/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/checked.h"
#include "core/rng.h"

namespace shardtune::parallel {

namespace {
static_assert(std::has_unique_object_representations_v<CallHeader>);

CallHeader without_digests(CallHeader header) {
  header.sent_digest = 0;
  header.received_digest = 0;
  return header;
}

bool same_call(const CallHeader& a, const CallHeader& b) {
  const CallHeader x = without_digests(a);
  const CallHeader y = without_digests(b);
  return std::memcmp(&x, &y, sizeof(x)) == 0;
}

std::string call_text(const CallHeader& call) {
  std::string text =
      fmt::format("{}(#{}", name_of(static_cast<CallKind>(call.kind)), call.sequence);
  if (call.kind != static_cast<uint32_t>(CallKind::kBarrier)) {
    if (call.kind != static_cast<uint32_t>(CallKind::kExchange))
      text += fmt::format(", {} bytes", call.bytes);
    text += fmt::format(", {}", shardtune::name_of(static_cast<DType>(call.dtype)));
  }
  if (call.root >= 0)
    text += fmt::format(", root {}", call.root);
  if (call.tag != 0)
    text += fmt::format(", tag {:x}", call.tag);
  return text + fmt::format(", config {:x})", call.config_word);
}

// Digest of the messages of one rank; addition makes it independent of the order of peers, the
// index per pair keeps the order within a pair.
template <typename Message, typename Pair>
uint64_t digest_of(std::span<const Message> messages, std::vector<uint64_t>& index,
                   const Pair& pair) {
  std::ranges::fill(index, 0);
  uint64_t digest = 0;
  for (const Message& message : messages) {
    const auto [from, to] = pair(message.peer);
    digest +=
        mix_key(0x5348415244u, {static_cast<uint64_t>(from), static_cast<uint64_t>(to),
                                message.bytes.size(), index[static_cast<size_t>(message.peer)]++});
  }
  return digest;
}

// Digest of a list of blocks, in its order.
uint64_t digest_of(std::span<const Block> blocks, uint64_t tag) {
  for (const Block& block : blocks)
    tag = mix_key(tag, {static_cast<uint64_t>(block.owner), block.bytes.size()});
  return tag;
}

std::string printable(std::string_view text) {
  constexpr size_t kMaxShown = 200;
  std::string result;
  for (const char c : text.substr(0, kMaxShown))
    result += (c >= ' ' && c < 127) ? c : '?';
  return text.size() > kMaxShown ? result + "..." : result;
}
}  // namespace

std::string_view name_of(CallKind kind) {
  switch (kind) {
    case CallKind::kBarrier:
      return "barrier";
    case CallKind::kBroadcast:
      return "broadcast";
    case CallKind::kAllGather:
      return "all_gather";
    case CallKind::kExchange:
      return "exchange";
    case CallKind::kAllGatherBlocks:
      return "all_gather_blocks";
  }
  return "unknown call";
}

Communicator::Communicator(int rank, int world_size)
    : rank_(rank),
      world_size_(world_size),
      calls_(static_cast<size_t>(std::max(world_size, 1))),
      index_(calls_.size()) {
  SHARDTUNE_ASSERT(world_size >= 1 && rank >= 0 && rank < world_size);
}

Communicator::~Communicator() = default;

Communicator::Running Communicator::begin_call(CallHeader call) {
  call.sequence = num_calls_;
  call.config_word = config_word_;
  current_ = call;
  ring_[num_calls_ % kRingSize] = call;
  ++num_calls_;
  on_call_begun(current_);
  return Running(*this);
}

void Communicator::do_agree(const CallHeader& mine, const CarriedPayload& payload,
                            std::span<CallHeader> all) {
  do_all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(all));
}

void Communicator::do_all_gather_blocks(std::span<const Block>, std::span<const Send> sends,
                                        std::span<const Receive> receives) {
  do_exchange(sends, receives);
}

void Communicator::agree(const CarriedPayload& payload) {
  {
    const ActivityScope waiting(activity_of_call(Activity::kIdle));
    do_agree(current_, payload, calls_);
  }
  for (size_t other = 1; other < calls_.size(); ++other) {
    if (same_call(calls_[0], calls_[other]))
      continue;
    throw RankMismatchError(fmt::format(
        "[rank {}/{}] ranks make different calls: rank 0 {}, rank {} {}; expected the same call on "
        "all ranks. Start every rank with the same program, configuration and files. Last calls "
        "of rank {}:\n{}",
        rank_, world_size_, call_text(calls_[0]), other, call_text(calls_[other]), rank_,
        recent_calls()));
  }
}

void Communicator::agree_on_messages(std::span<const Send> sends,
                                     std::span<const Receive> receives) {
  const auto to_peer = [this](int peer) { return std::pair(rank_, peer); };
  const auto from_peer = [this](int peer) { return std::pair(peer, rank_); };
  current_.sent_digest = digest_of(sends, index_, to_peer);
  current_.received_digest = digest_of(receives, index_, from_peer);
  agree({.mine = {}, .num_bytes = 0, .sends = sends});
  uint64_t difference = 0;
  for (const CallHeader& call : calls_)
    difference += call.sent_digest - call.received_digest;
  if (difference != 0)
    throw_message_mismatch(sends, receives);
}

// Every rank sees the same difference and comes here, so gathering the details is safe.
void Communicator::throw_message_mismatch(std::span<const Send> sends,
                                          std::span<const Receive> receives) {
  struct Traffic {
    int64_t sent_bytes = 0;
    int64_t sent_messages = 0;
    int64_t received_bytes = 0;
    int64_t received_messages = 0;
  };
  const auto n = static_cast<size_t>(world_size_);
  std::vector<Traffic> mine(n);
  for (const Send& send : sends) {
    mine[send.peer].sent_bytes += static_cast<int64_t>(send.bytes.size());
    ++mine[send.peer].sent_messages;
  }
  for (const Receive& receive : receives) {
    mine[receive.peer].received_bytes += static_cast<int64_t>(receive.bytes.size());
    ++mine[receive.peer].received_messages;
  }
  std::vector<Traffic> all(n * n);
  agree({std::as_bytes(std::span(mine)), n * sizeof(Traffic), {}});
  do_all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  std::string details = "messages of other sizes in the same total";
  for (size_t pair = 0; pair < n * n; ++pair) {
    const size_t from = pair / n;
    const size_t to = pair % n;
    const Traffic& sent = all[from * n + to];
    const Traffic& received = all[to * n + from];
    if (sent.sent_bytes == received.received_bytes &&
        sent.sent_messages == received.received_messages)
      continue;
    details = fmt::format(
        "rank {} sends {} bytes in {} messages to rank {}, which expects {} bytes in {}", from,
        sent.sent_bytes, sent.sent_messages, to, received.received_bytes,
        received.received_messages);
    break;
  }
  throw RankMismatchError(
      fmt::format("{}: {}. Start every rank with the same program, configuration and files.",
                  current_call(), details));
}

void Communicator::check_peer(int peer) const {
  if (peer < 0 || peer >= world_size_)
    throw ArgumentError(fmt::format("{}: expected a rank in 0..{}, found {}", current_call(),
                                    world_size_ - 1, peer));
}

void Communicator::barrier() {
  const Running running = begin_call({.kind = static_cast<uint32_t>(CallKind::kBarrier)});
  if (world_size_ == 1)
    return;
  agree();
}

void Communicator::broadcast(std::span<std::byte> bytes, int root, DType dtype, uint64_t tag) {
  const Running running = begin_call({.bytes = bytes.size(),
                                      .tag = tag,
                                      .kind = static_cast<uint32_t>(CallKind::kBroadcast),
                                      .dtype = static_cast<uint32_t>(dtype),
                                      .root = root});
  check_peer(root);
  if (world_size_ == 1)
    return;
  agree({rank_ == root ? bytes : std::span<std::byte>(), bytes.size(), {}});
  if (!bytes.empty())
    do_broadcast(bytes, root);
}

void Communicator::all_gather(std::span<const std::byte> sent, std::span<std::byte> received,
                              DType dtype, uint64_t tag) {
  const Running running = begin_call({.bytes = sent.size(),
                                      .tag = tag,
                                      .kind = static_cast<uint32_t>(CallKind::kAllGather),
                                      .dtype = static_cast<uint32_t>(dtype)});
  if (received.size() != sent.size() * static_cast<size_t>(world_size_))
    throw ArgumentError(fmt::format("{}: expected room for {} x {} bytes, found {}", current_call(),
                                    world_size_, sent.size(), received.size()));
  if (world_size_ == 1) {
    std::copy(sent.begin(), sent.end(), received.begin());
    return;
  }
  agree({sent, sent.size(), {}});
  if (!sent.empty())
    do_all_gather(sent, received);
}

void Communicator::all_gather_blocks(std::span<const Block> blocks, DType dtype, uint64_t tag) {
  uint64_t num_bytes = 0;
  for (const Block& block : blocks)
    num_bytes += block.bytes.size();
  const Running running = begin_call({.bytes = num_bytes,
                                      .tag = digest_of(blocks, tag),
                                      .kind = static_cast<uint32_t>(CallKind::kAllGatherBlocks),
                                      .dtype = static_cast<uint32_t>(dtype)});
  outgoing_.clear();
  incoming_.clear();
  for (const Block& block : blocks) {
    check_peer(block.owner);
    if (block.bytes.empty())
      continue;
    if (block.owner != rank_)
      incoming_.push_back({block.owner, block.bytes});
    for (int peer = 0; block.owner == rank_ && peer < world_size_; ++peer) {
      if (peer != rank_)
        outgoing_.push_back({peer, block.bytes});
    }
  }
  if (world_size_ == 1)
    return;
  agree({.mine = {}, .num_bytes = 0, .sends = outgoing_});
  do_all_gather_blocks(blocks, outgoing_, incoming_);
  count_messages();
}

void Communicator::count_messages() {
  for (const Send& send : outgoing_)
    exchanged_.sent += static_cast<int64_t>(send.bytes.size());
  for (const Receive& receive : incoming_)
    exchanged_.received += static_cast<int64_t>(receive.bytes.size());
}

void Communicator::exchange(std::span<const Send> sends, std::span<const Receive> receives,
                            DType dtype, uint64_t tag) {
  const Running running = begin_call({.tag = tag,
                                      .kind = static_cast<uint32_t>(CallKind::kExchange),
                                      .dtype = static_cast<uint32_t>(dtype)});
  outgoing_.clear();
  incoming_.clear();
  std::vector<std::span<const std::byte>> from_self;
  std::vector<std::span<std::byte>> to_self;
  for (const Send& send : sends) {
    check_peer(send.peer);
    if (send.peer == rank_)
      from_self.push_back(send.bytes);
    else
      outgoing_.push_back(send);
  }
  for (const Receive& receive : receives) {
    check_peer(receive.peer);
    if (receive.peer == rank_)
      to_self.push_back(receive.bytes);
    else
      incoming_.push_back(receive);
  }
  if (!std::ranges::equal(
          from_self, to_self, {}, [](auto span) { return span.size(); },
          [](auto span) { return span.size(); }))
    throw ArgumentError(current_call() + ": messages of a rank to itself differ in number or size");
  if (world_size_ > 1) {
    agree_on_messages(outgoing_, incoming_);
    do_exchange(outgoing_, incoming_);
    count_messages();
  }
  for (size_t i = 0; i < from_self.size(); ++i)
    std::copy(from_self[i].begin(), from_self[i].end(), to_self[i].begin());
}

std::vector<std::vector<std::byte>> Communicator::all_gather_bytes(
    std::span<const std::byte> bytes) {
  const auto sizes = all_gather_value(static_cast<int64_t>(bytes.size()));
  const int64_t longest = *std::ranges::max_element(sizes);
  std::vector<std::byte> padded(static_cast<size_t>(longest));
  std::ranges::copy(bytes, padded.begin());
  std::vector<std::byte> all(static_cast<size_t>(checked_mul(longest, world_size_)));
  all_gather(padded, all);
  std::vector<std::vector<std::byte>> rows;
  for (int r = 0; r < world_size_; ++r) {
    const auto begin = all.begin() + r * longest;
    rows.emplace_back(begin, begin + sizes[r]);
  }
  return rows;
}

std::vector<std::string> Communicator::all_gather_strings(std::string_view text) {
  std::vector<std::string> result;
  for (const auto& row : all_gather_bytes(std::as_bytes(std::span(text))))
    result.emplace_back(reinterpret_cast<const char*>(row.data()), row.size());
  return result;
}

int64_t Communicator::all_reduce_max(int64_t value) {
  return std::ranges::max(all_gather_value(value));
}

int64_t Communicator::all_reduce_min(int64_t value) {
  return std::ranges::min(all_gather_value(value));
}

int64_t Communicator::all_reduce_sum(int64_t value) {
  int64_t sum = 0;
  for (const int64_t term : all_gather_value(value))
    sum = checked_add(sum, term);
  return sum;
}

std::string Communicator::current_call() const {
  return fmt::format("[rank {}/{}] {}", rank_, world_size_, call_text(current_));
}

std::string Communicator::recent_calls() const {
  std::string text;
  const uint64_t first = num_calls_ > kRingSize ? num_calls_ - kRingSize : 0;
  for (uint64_t i = first; i < num_calls_; ++i)
    text += "  " + call_text(ring_[i % kRingSize]) + "\n";
  return text;
}

bool started_by_mpi() {
  // What OpenMPI's mpirun, PMIx launchers (srun --mpi=pmix) and Hydra set for each rank.
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr ||
         std::getenv("PMI_RANK") != nullptr;
}

std::unique_ptr<Communicator> make_communicator() {
  return started_by_mpi() ? make_mpi_communicator() : make_single_communicator();
}

void check_same_on_all_ranks(Communicator& comm, std::string_view name, std::string_view value) {
  const auto values = comm.all_gather_strings(value);
  for (size_t other = 1; other < values.size(); ++other) {
    if (values[other] == values[0])
      continue;
    throw RankMismatchError(fmt::format(
        "[rank {}/{}] {}: expected the same on all ranks, found '{}' on rank 0 and '{}' on rank "
        "{}. Start every rank with the same program, configuration and files, on equal machines.",
        comm.rank(), comm.world_size(), name, printable(values[0]), printable(values[other]),
        other));
  }
}

}  // namespace shardtune::parallel
