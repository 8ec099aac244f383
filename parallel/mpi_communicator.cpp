// Ranks as MPI processes. Ranks of one host exchange through shared memory; MPI carries the
// start-up and what goes between hosts, where one rank of each host, its leader, sends what is for
// all of a host: one message to each other leader, from and to where the bytes lie. Every MPI
// operation is posted non-blocking and finished by complete(), the one place that waits for MPI.
// Counts of MPI are int, so long messages travel in pieces of at most 1 GiB.
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <optional>
#include <thread>

#include "core/log.h"
#include "parallel/communicator.h"
#include "parallel/mpi_hosts.h"

namespace shardtune::parallel {

namespace {
constexpr size_t kPieceBytes = size_t{1} << 30;
constexpr int kTag = 1;
constexpr std::chrono::microseconds kPushPeriod{200};

template <typename Body>
void for_each_piece(size_t num_bytes, const Body& body) {
  for (size_t begin = 0; begin < num_bytes; begin += kPieceBytes)
    body(begin, static_cast<int>(std::min(kPieceBytes, num_bytes - begin)));
}

int rank_of_world() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int size_of_world() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

enum class Transport { kAuto, kShm, kMpi };

Transport parse_transport(const std::string& text) {
  if (text.empty() || text == "auto")
    return Transport::kAuto;
  if (text == "shm")
    return Transport::kShm;
  if (text == "mpi")
    return Transport::kMpi;
  throw ConfigError(fmt::format(
      "SHARDTUNE_TRANSPORT: expected auto, shm or mpi, found '{}'. Unset it or write auto.", text));
}

/// Adjoining spans become one.
void append(std::vector<std::span<std::byte>>& runs, std::span<std::byte> bytes) {
  if (bytes.empty())
    return;
  if (!runs.empty() && runs.back().data() + runs.back().size() == bytes.data())
    runs.back() = {runs.back().data(), runs.back().size() + bytes.size()};
  else
    runs.push_back(bytes);
}

class MpiCommunicator : public Communicator {
 public:
  explicit MpiCommunicator(const MpiOptions& options)
      : Communicator(rank_of_world(), size_of_world()) {
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    hosts_ = find_hosts(options.num_pretended_hosts);
    set_host({hosts_.host_name, hosts_.locals[0], hosts_.local_rank, hosts_.local_size()});
    if (world_size() == 1)
      return;
    set_up_transport(parse_transport(options.transport));
    heartbeat_.emplace(rank(), all_host_names(hosts_), connect_heartbeats(hosts_));
  }

  ~MpiCommunicator() override {
    // MPI_Finalize waits for all ranks: after a failure they would wait for ever. Without it the
    // launcher sees an improper exit and ends the others.
    if (failed_ || std::uncaught_exceptions() > 0) {
      if (heartbeat_)
        heartbeat_->leave_failed();
      return;
    }
    heartbeat_.reset();
    free_groups(hosts_);
    MPI_Finalize();
  }

  bool shares_memory() const override { return shared_.has_value() && hosts_.one_host(); }
  std::string_view backend() const override { return shared_ ? "mpi+shm" : "mpi"; }
  void abort(int exit_code) noexcept override {
    if (heartbeat_) {
      heartbeat_->announce_ending(exit_code);
      // The others are to read it before the connections close.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }

  void note_progress(const Progress& progress) override {
    if (heartbeat_)
      heartbeat_->note_progress(progress);
  }
  void note_unit(int64_t unit) override {
    if (heartbeat_)
      heartbeat_->note_unit(unit);
  }
  void set_deadlines(const Deadlines& deadlines) override {
    if (heartbeat_)
      heartbeat_->set_deadlines(deadlines);
  }
  void on_lost_peer(std::function<void(const std::string&)> report) override {
    if (heartbeat_)
      heartbeat_->on_lost(std::move(report));
  }

 protected:
  void on_call_begun(const CallHeader& call) override {
    if (heartbeat_)
      heartbeat_->note_call_begun(call);
  }
  void on_call_ended() override {
    if (heartbeat_)
      heartbeat_->note_call_ended();
  }

  void do_agree(const CallHeader& mine, const CarriedPayload& payload,
                std::span<CallHeader> all) override {
    if (shared_ && hosts_.one_host())
      shared_->meet(mine, payload, all);
    else
      Communicator::do_agree(mine, payload, all);
  }

  void do_broadcast(std::span<std::byte> bytes, int root) override {
    if (!shared_) {
      mpi_broadcast(bytes, root, MPI_COMM_WORLD);
      return;
    }
    const int root_host = hosts_.host_of[static_cast<size_t>(root)];
    const bool is_root_host = root_host == own_host();
    if (is_root_host)
      shared_->broadcast(bytes, hosts_.local_rank_of[static_cast<size_t>(root)]);
    if (hosts_.one_host())
      return;
    if (local_rank() == 0)
      mpi_broadcast(bytes, root_host, hosts_.leaders_group);
    if (!is_root_host && local_size() > 1)
      shared_->broadcast(bytes, 0);
  }

  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    if (!shared_) {
      mpi_all_gather(sent, received);
      return;
    }
    for (size_t r = 0; r < blocks_.size(); ++r)
      blocks_[r] = received.data() + static_cast<size_t>(hosts_.locals[r]) * sent.size();
    shared_->all_gather(sent, blocks_);
    if (hosts_.one_host())
      return;
    begin_runs();
    for (int r = 0; r < world_size(); ++r)
      append(runs_of(r), received.subspan(static_cast<size_t>(r) * sent.size(), sent.size()));
    bring_from_other_hosts();
  }

  void do_all_gather_blocks(std::span<const Block> blocks, std::span<const Send> sends,
                            std::span<const Receive> receives) override {
    if (!shared_ || hosts_.one_host()) {
      do_exchange(sends, receives);
      return;
    }
    local_sends_.clear();
    local_receives_.clear();
    for (const Send& send : sends) {
      if (is_local(send.peer))
        local_sends_.push_back({hosts_.local_rank_of[static_cast<size_t>(send.peer)], send.bytes});
    }
    for (const Receive& receive : receives) {
      if (is_local(receive.peer))
        local_receives_.push_back(
            {hosts_.local_rank_of[static_cast<size_t>(receive.peer)], receive.bytes});
    }
    shared_->exchange(local_sends_, local_receives_);
    begin_runs();
    for (const Block& block : blocks)
      append(runs_of(block.owner), block.bytes);
    bring_from_other_hosts();
  }

  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {
    requests_.clear();
    local_sends_.clear();
    local_receives_.clear();
    for (const Receive& receive : receives) {
      if (is_local(receive.peer))
        local_receives_.push_back(
            {hosts_.local_rank_of[static_cast<size_t>(receive.peer)], receive.bytes});
      else
        post_receive(receive.bytes, receive.peer);
    }
    for (const Send& send : sends) {
      if (is_local(send.peer))
        local_sends_.push_back({hosts_.local_rank_of[static_cast<size_t>(send.peer)], send.bytes});
      else
        post_send(send.bytes, send.peer);
    }
    if (shared_)
      shared_->exchange(local_sends_, local_receives_);
    complete();
  }

 private:
  int own_host() const { return hosts_.host_of[static_cast<size_t>(rank())]; }
  bool is_local(int peer) const {
    return shared_ && hosts_.host_of[static_cast<size_t>(peer)] == own_host();
  }

  // ---- shared memory of a host

  // All ranks get shared memory on their hosts, or none does, with the first reason told.
  void set_up_transport(Transport wanted) {
    check_same_transport(wanted);
    if (wanted == Transport::kMpi)
      return;
    HostMemory shared = share_memory(hosts_);
    if (shared.problem.empty()) {
      memory_.emplace(std::move(*shared.memory));
      shared_.emplace(memory_->bytes(), local_rank(), local_size(), find_cores(hosts_),
                      hosts_.one_host() ? Meanwhile{[this] { check_peers(); }}
                                        : Meanwhile{[this] { push_messages(); }, kPushPeriod});
      blocks_.resize(hosts_.locals.size());
      return;
    }
    if (wanted == Transport::kShm)
      throw CommError("SHARDTUNE_TRANSPORT=shm: " + shared.problem + ". Write auto or mpi.");
    if (rank() == 0)
      log_warning("ranks of one host use MPI instead of shared memory: " + shared.problem);
  }

  void check_same_transport(Transport wanted) {
    int range[2] = {static_cast<int>(wanted), -static_cast<int>(wanted)};
    check(MPI_Allreduce(MPI_IN_PLACE, range, 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD));
    if (range[0] != -range[1])
      throw RankMismatchError(
          "SHARDTUNE_TRANSPORT: expected the same on all ranks. Export it to "
          "all of them (mpirun -x SHARDTUNE_TRANSPORT).");
  }

  // ---- heartbeats

  void check_peers() {
    if (!heartbeat_ || !heartbeat_->is_lost())
      return;
    failed_ = true;
    heartbeat_->throw_if_lost(current_call());
  }

  // ---- MPI

  // A send that MPI calls complete may still lie in its buffers, and moves on only when some MPI
  // function runs. Ranks that wait for their own host see to it, or those that wait for the message
  // and they would wait for each other for ever (seen over TCP).
  void push_messages() {
    int found = 0;
    check(MPI_Iprobe(MPI_ANY_SOURCE, kTag, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE));
    check_peers();
  }

  void mpi_broadcast(std::span<std::byte> bytes, int root, MPI_Comm group) {
    for_each_piece(bytes.size(), [&](size_t begin, int count) {
      requests_.assign(1, MPI_REQUEST_NULL);
      check(MPI_Ibcast(bytes.data() + begin, count, MPI_BYTE, root, group, requests_.data()));
      complete();
    });
  }

  void mpi_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) {
    std::byte* own = received.data() + sent.size() * static_cast<size_t>(rank());
    const bool in_place = own == sent.data();
    if (received.size() <= kPieceBytes) {
      const int count = static_cast<int>(sent.size());
      requests_.assign(1, MPI_REQUEST_NULL);
      check(MPI_Iallgather(in_place ? MPI_IN_PLACE : sent.data(), count, MPI_BYTE, received.data(),
                           count, MPI_BYTE, MPI_COMM_WORLD, requests_.data()));
      complete();
      return;
    }
    if (!in_place)
      std::copy(sent.begin(), sent.end(), own);
    for (int root = 0; root < world_size(); ++root)
      mpi_broadcast(received.subspan(static_cast<size_t>(root) * sent.size(), sent.size()), root,
                    MPI_COMM_WORLD);
  }

  // ---- between hosts

  void begin_runs() {
    runs_.resize(hosts_.leaders.size());
    for (auto& runs : runs_)
      runs.clear();
  }
  std::vector<std::span<std::byte>>& runs_of(int owner) {
    return runs_[static_cast<size_t>(hosts_.host_of[static_cast<size_t>(owner)])];
  }

  // runs_ lists what the ranks of each host hold; those of this host have its own part already. The
  // leaders exchange it and hand it on.
  void bring_from_other_hosts() {
    const auto own = static_cast<size_t>(own_host());
    if (local_rank() == 0) {
      requests_.clear();
      for (size_t host = 0; host < runs_.size(); ++host) {
        if (host != own)
          post_runs(runs_[host], host, Way::kReceive);
      }
      for (size_t host = 0; host < runs_.size(); ++host) {
        if (host != own)
          post_runs(runs_[own], host, Way::kSend);
      }
      complete();
    }
    for (size_t host = 0; host < runs_.size() && local_size() > 1; ++host) {
      for (const std::span<std::byte> run : runs_[host]) {
        if (host != own)
          shared_->broadcast(run, 0);
      }
    }
  }

  enum class Way { kSend, kReceive };

  // One message to or from the leader of a host, whatever the number of runs.
  void post_runs(std::span<const std::span<std::byte>> runs, size_t host, Way way) {
    if (runs.empty())
      return;
    std::vector<int> lengths;
    std::vector<MPI_Aint> places;
    for (const std::span<std::byte> run : runs) {
      for_each_piece(run.size(), [&](size_t begin, int count) {
        lengths.push_back(count);
        MPI_Get_address(run.data() + begin, &places.emplace_back());
      });
    }
    MPI_Datatype type = MPI_DATATYPE_NULL;
    check(MPI_Type_create_hindexed(static_cast<int>(lengths.size()), lengths.data(), places.data(),
                                   MPI_BYTE, &type));
    check(MPI_Type_commit(&type));
    MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
    const int leader = hosts_.leaders[host];
    check(way == Way::kSend
              ? MPI_Isend(MPI_BOTTOM, 1, type, leader, kTag, MPI_COMM_WORLD, &request)
              : MPI_Irecv(MPI_BOTTOM, 1, type, leader, kTag, MPI_COMM_WORLD, &request));
    check(MPI_Type_free(&type));
  }

  void post_receive(std::span<std::byte> bytes, int peer) {
    for_each_piece(bytes.size(), [&](size_t begin, int count) {
      check(MPI_Irecv(bytes.data() + begin, count, MPI_BYTE, peer, kTag, MPI_COMM_WORLD,
                      &requests_.emplace_back(MPI_REQUEST_NULL)));
    });
  }

  void post_send(std::span<const std::byte> bytes, int peer) {
    for_each_piece(bytes.size(), [&](size_t begin, int count) {
      check(MPI_Isend(bytes.data() + begin, count, MPI_BYTE, peer, kTag, MPI_COMM_WORLD,
                      &requests_.emplace_back(MPI_REQUEST_NULL)));
    });
  }

  void check(int code) {
    if (code == MPI_SUCCESS)
      return;
    failed_ = true;
    throw CommError(fmt::format("{}: MPI on {}: {}. Look for the first error of any rank.",
                                current_call(), host_name(), mpi_error_text(code)));
  }

  // Polls at once for a while, then with short sleeps: ranks may share cores, and a rank that
  // waits for a slower one must leave it the processor.
  void complete() {
    constexpr auto kPollAtOnce = std::chrono::milliseconds(2);
    constexpr auto kSleep = std::chrono::microseconds(20);
    if (requests_.empty())
      return;
    const auto start = std::chrono::steady_clock::now();
    while (true) {
      int done = 0;
      check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                        MPI_STATUSES_IGNORE));
      if (done != 0)
        return;
      check_peers();
      if (std::chrono::steady_clock::now() - start < kPollAtOnce)
        sched_yield();
      else
        std::this_thread::sleep_for(kSleep);
    }
  }

  bool failed_ = false;
  MpiHosts hosts_;
  std::optional<SharedMemory> memory_;
  std::optional<SharedMemoryTransport> shared_;
  std::vector<std::byte*> blocks_;  // [local rank], of the all_gather that runs
  std::vector<Send> local_sends_;   // of the call that runs, peers as local ranks
  std::vector<Receive> local_receives_;
  std::vector<std::vector<std::span<std::byte>>> runs_;  // [host], of the gather that runs
  std::vector<MPI_Request> requests_;                    // of the operation that runs
  std::optional<Heartbeat> heartbeat_;
};
}  // namespace

std::string MpiOptions::transport_from_environment() {
  const char* text = std::getenv("SHARDTUNE_TRANSPORT");
  return text == nullptr ? "" : text;
}

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options) {
  parse_transport(options.transport);
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (initialised != 0)
    throw CommError("make_mpi_communicator: expected one call per process, found MPI initialised.");
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS || provided < MPI_THREAD_SERIALIZED)
    throw CommError(fmt::format(
        "MPI_Init_thread: expected thread level {}, found {} (code {}). Use an MPI with threads.",
        static_cast<int>(MPI_THREAD_SERIALIZED), provided, code));
  return std::make_unique<MpiCommunicator>(options);
}

}  // namespace shardtune::parallel
