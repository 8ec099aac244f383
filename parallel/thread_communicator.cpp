// Ranks as threads: a rank shows its buffers to the group, all meet, receivers copy, all meet again
// so that nobody reuses a buffer that is still read.
#include "parallel/thread_communicator.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel/shared_memory.h"
#include "parallel/shared_memory_transport.h"

namespace shardtune::parallel {

namespace {
class ThreadGroup {
 public:
  explicit ThreadGroup(int size) : shown_(static_cast<size_t>(size)), size_(size) {}

  struct Shown {
    std::span<const std::byte> sent;
    std::span<std::byte> broadcast;
    std::span<const Send> sends;
  };
  Shown& shown(int rank) { return shown_[static_cast<size_t>(rank)]; }

  /// Waits for all ranks. CommError when one has failed or left: it can never come.
  void meet(const std::string& call) {
    std::unique_lock lock(mutex_);
    const uint64_t generation = generation_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++generation_;
      condition_.notify_all();
      return;
    }
    condition_.wait(lock, [&] { return generation_ != generation || lost_rank_ >= 0; });
    if (generation_ == generation)
      throw CommError(call + ": rank " + std::to_string(lost_rank_) +
                      " failed or left. Look for its first error.");
  }

  void lose(int rank) noexcept {
    const std::lock_guard lock(mutex_);
    if (lost_rank_ < 0)
      lost_rank_ = rank;
    condition_.notify_all();
  }

 private:
  std::vector<Shown> shown_;
  int size_;
  std::mutex mutex_;
  std::condition_variable condition_;
  int arrived_ = 0;
  uint64_t generation_ = 0;
  int lost_rank_ = -1;
};

void copy_bytes(std::span<const std::byte> from, std::span<std::byte> to) {
  SHARDTUNE_ASSERT(from.size() == to.size());
  std::copy(from.begin(), from.end(), to.begin());
}

class ThreadCommunicator : public Communicator {
 public:
  // The ranks share the group; the last one to go frees it.
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank, int world_size, int num_hosts)
      : Communicator(rank, world_size), group_(std::move(group)) {
    const int host = rank % num_hosts;
    set_host({"localhost", host, rank / num_hosts, (world_size - host - 1) / num_hosts + 1});
  }
  ~ThreadCommunicator() override { group_->lose(rank()); }

  std::string_view backend() const override { return "threads"; }
  void abort(int exit_code) noexcept override { group_->lose(rank()); }

 protected:
  void do_broadcast(std::span<std::byte> bytes, int root) override {
    group_->shown(rank()).broadcast = bytes;
    group_->meet(current_call());
    if (rank() != root)
      copy_bytes(group_->shown(root).broadcast, bytes);
    group_->meet(current_call());
  }

  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    group_->shown(rank()).sent = sent;
    group_->meet(current_call());
    for (int r = 0; r < world_size(); ++r)
      copy_bytes(group_->shown(r).sent,
                 received.subspan(static_cast<size_t>(r) * sent.size(), sent.size()));
    group_->meet(current_call());
  }

  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {
    group_->shown(rank()).sends = sends;
    group_->meet(current_call());
    std::vector<size_t> position(static_cast<size_t>(world_size()), 0);
    for (const Receive& receive : receives) {
      const auto& theirs = group_->shown(receive.peer).sends;
      size_t& i = position[static_cast<size_t>(receive.peer)];
      while (i < theirs.size() && theirs[i].peer != rank())
        ++i;
      SHARDTUNE_ASSERT(i < theirs.size());
      copy_bytes(theirs[i++].bytes, receive.bytes);
    }
    group_->meet(current_call());
  }

 private:
  std::shared_ptr<ThreadGroup> group_;
};

class SharedMemoryThreadCommunicator : public Communicator {
 public:
  // The ranks share the memory; the last one to go frees it.
  SharedMemoryThreadCommunicator(std::shared_ptr<SharedMemory> memory, int rank, int world_size)
      : Communicator(rank, world_size),
        memory_(std::move(memory)),
        transport_(memory_->bytes(), rank, world_size, Cores::kShared, {[this] { check(); }}) {
    set_host({"localhost", 0, rank, world_size});
    for (int r = 0; r < world_size; ++r)
      blocks_.push_back(nullptr);
  }
  ~SharedMemoryThreadCommunicator() override { transport_.leave(); }

  bool shares_memory() const override { return true; }
  std::string_view backend() const override { return "threads+shm"; }
  void abort(int exit_code) noexcept override { transport_.leave(); }

 protected:
  void do_agree(const CallHeader& mine, const CarriedPayload& payload,
                std::span<CallHeader> all) override {
    transport_.meet(mine, payload, all);
  }
  void do_broadcast(std::span<std::byte> bytes, int root) override {
    transport_.broadcast(bytes, root);
  }
  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    for (size_t r = 0; r < blocks_.size(); ++r)
      blocks_[r] = received.data() + r * sent.size();
    transport_.all_gather(sent, blocks_);
  }
  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {
    transport_.exchange(sends, receives);
  }

 private:
  void check() const {
    const int lost = transport_.lost_rank();
    if (lost >= 0)
      throw LostPeerError(current_call() + ": rank " + std::to_string(lost) +
                          " failed or left. Look for its first error.");
  }

  std::shared_ptr<SharedMemory> memory_;
  SharedMemoryTransport transport_;
  std::vector<std::byte*> blocks_;
};
}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_group(int world_size,
                                                             ThreadTransport transport,
                                                             int num_pretended_hosts) {
  if (world_size < 1)
    throw ArgumentError("make_thread_group: expected at least 1 rank, found " +
                        std::to_string(world_size));
  if (num_pretended_hosts < 1 ||
      (transport == ThreadTransport::kSharedMemory && num_pretended_hosts > 1))
    throw ArgumentError("make_thread_group: expected 1 host, or more over buffers, found " +
                        std::to_string(num_pretended_hosts));
  std::vector<std::unique_ptr<Communicator>> ranks;
  if (transport == ThreadTransport::kSharedMemory) {
    const auto memory = std::make_shared<SharedMemory>(
        SharedMemory::create(SharedMemoryTransport::segment_bytes(world_size)));
    for (int r = 0; r < world_size; ++r)
      ranks.push_back(std::make_unique<SharedMemoryThreadCommunicator>(memory, r, world_size));
    return ranks;
  }
  const auto group = std::make_shared<ThreadGroup>(world_size);
  for (int r = 0; r < world_size; ++r)
    ranks.push_back(
        std::make_unique<ThreadCommunicator>(group, r, world_size, num_pretended_hosts));
  return ranks;
}

void run_on_threads(int world_size, const std::function<void(Communicator&)>& body,
                    ThreadTransport transport, int num_pretended_hosts) {
  auto ranks = make_thread_group(world_size, transport, num_pretended_hosts);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&, comm = std::move(rank)]() mutable {
      try {
        body(*comm);
      } catch (...) {
        const std::lock_guard lock(mutex);
        // The others fail only after this rank has left, so the first to come is the cause.
        if (!first)
          first = std::current_exception();
      }
      comm.reset();
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  if (first)
    std::rethrow_exception(first);
}

}  // namespace shardtune::parallel
