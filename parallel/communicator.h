// Communication between ranks. A Communicator moves bytes and never adds floats (DESIGN section
// 8.2). Every public operation is collective: all ranks call the same ones in the same order, from
// one thread per rank at a time (stage 3 gathers on a thread of its own while no other call runs).
// Before data moves, the ranks compare what they are about to do (sequence, kind, bytes, dtype,
// config word); a difference is a RankMismatchError on every rank that shows both calls. A lost
// peer or a failing transport is a CommError naming rank and call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/activity.h"
#include "core/dtype.h"
#include "core/error.h"
#include "parallel/traffic.h"

namespace shardtune::parallel {

/// One message of an exchange round; the bytes belong to the caller.
struct Send {
  int peer = 0;
  std::span<const std::byte> bytes;
};
struct Receive {
  int peer = 0;
  std::span<std::byte> bytes;
};

/// What one rank gives to all in all_gather_blocks: where it lies in this rank's memory. On the
/// owner it holds the data beforehand.
struct Block {
  int owner = 0;
  std::span<std::byte> bytes;
};

enum class CallKind : uint32_t { kBarrier, kBroadcast, kAllGather, kExchange, kAllGatherBlocks };
std::string_view name_of(CallKind kind);

/// What a rank is about to do; the ranks compare these before data moves.
struct CallHeader {
  uint64_t sequence = 0;
  uint64_t bytes = 0;  // as the caller gave them; of an exchange: 0
  uint64_t config_word = 0;
  uint64_t tag = 0;  // the caller's word for what this call is about
  uint32_t kind = 0;
  uint32_t dtype = 0;
  int64_t root = -1;  // of a broadcast
  // Of an exchange: commutative digests over (from, to, bytes, order). Summed over ranks they are
  // equal when every message sent is one that is received.
  uint64_t sent_digest = 0;
  uint64_t received_digest = 0;
};

/// Another rank died, stopped or hangs. Every rank that is left gets one, naming that rank.
class LostPeerError : public CommError {
 public:
  using CommError::CommError;
};

/// What a call will move, for transports that carry some of it along with the header.
struct CarriedPayload {
  std::span<const std::byte> mine;  // empty: this rank gives nothing (not the root)
  size_t num_bytes = 0;             // of each rank that gives; 0: nothing to carry
  std::span<const Send> sends;      // of an exchange
};

/// Where a rank stands, as its heartbeats tell it.
struct Progress {
  int64_t step = -1;  // as users count them, from 1; -1: outside of steps (start-up, evaluation)
  int64_t micro_step = -1;
};

/// How long a rank may be silent, or stand still, before the others end the job.
struct Deadlines {
  double heartbeat_seconds = 10.0;       // silent for twice this: lost
  double step_timeout_seconds = 0.0;     // no progress inside a step; 0: max(30, 10 x median step)
  double setup_timeout_seconds = 300.0;  // no progress outside of steps, or in the first one
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  /// Position among the ranks of this host, and their number.
  int local_rank() const { return host_.local_rank; }
  int local_size() const { return host_.local_size; }
  /// The rank with local_rank 0 of this host: ranks that have the same one share a host.
  int host_leader() const { return host_.leader; }
  const std::string& host_name() const { return host_.name; }
  /// Whether all ranks are on one host and can open each other's memory.
  virtual bool shares_memory() const { return false; }
  /// "single", "threads", "threads+shm", "mpi" or "mpi+shm" (ranks of a host share memory).
  virtual std::string_view backend() const = 0;

  /// No rank leaves before all have come.
  void barrier();
  /// Copies root's bytes into every rank's; all spans have the same length. `tag` here and below:
  /// any word that must be equal on all ranks, e.g. a digest of the name of what is sent.
  void broadcast(std::span<std::byte> bytes, int root, DType dtype = DType::kUInt8,
                 uint64_t tag = 0);
  /// received = every rank's `sent` in rank order; received.size() == world_size * sent.size().
  void all_gather(std::span<const std::byte> sent, std::span<std::byte> received,
                  DType dtype = DType::kUInt8, uint64_t tag = 0);
  /// Every block to all ranks, in place: an all_gather of any number of blocks per rank, each of
  /// its own size. The list has the same owners and sizes in the same order on all ranks. Between
  /// hosts a block travels once to each host, not once to each rank, unlike messages of exchange.
  void all_gather_blocks(std::span<const Block> blocks, DType dtype = DType::kUInt8,
                         uint64_t tag = 0);
  /// One round of point-to-point messages, any number per pair, matched in order; messages to
  /// oneself are copied. Every rank calls it, if only with nothing.
  void exchange(std::span<const Send> sends, std::span<const Receive> receives,
                DType dtype = DType::kUInt8, uint64_t tag = 0);

  /// One value per rank, in rank order.
  template <typename T>
  std::vector<T> all_gather_value(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> values(static_cast<size_t>(world_size_));
    all_gather(std::as_bytes(std::span<const T>(&value, 1)),
               std::as_writable_bytes(std::span<T>(values)));
    return values;
  }
  /// Rows of different length, in rank order.
  std::vector<std::vector<std::byte>> all_gather_bytes(std::span<const std::byte> bytes);
  std::vector<std::string> all_gather_strings(std::string_view text);

  /// Decisions over ranks (stop, skip, save): every rank gets the same answer.
  int64_t all_reduce_max(int64_t value);
  int64_t all_reduce_min(int64_t value);
  int64_t all_reduce_sum(int64_t value);
  bool any(bool value) { return all_reduce_max(value ? 1 : 0) != 0; }
  bool all(bool value) { return all_reduce_min(value ? 1 : 0) != 0; }

  /// Carried by every later call: ranks of another configuration are told from ours.
  void set_config_word(uint64_t word) { config_word_ = word; }

  /// Ends the job on all ranks with this exit code; for one rank alone it returns. For use by
  /// launch/ only, after the error was printed.
  virtual void abort(int exit_code) noexcept = 0;

  /// Watching the other ranks (parallel/heartbeat.h); nothing to do where there are none. Any
  /// thread may tell progress; `unit` is the parameter unit in use.
  virtual void note_progress(const Progress& progress) {}
  virtual void note_unit(int64_t unit) {}
  virtual void set_deadlines(const Deadlines& deadlines) {}
  /// `report` runs on a thread of its own when another rank is lost and this one does not find out
  /// by itself, because it computes or is stuck in the transport. It must end the process.
  virtual void on_lost_peer(std::function<void(const std::string& message)> report) {}

  /// Bytes of the messages that exchange() and all_gather_blocks() moved to and from other ranks so
  /// far; blocks count for each rank that gets them, though they cross to a host once.
  const Traffic& exchanged() const { return exchanged_; }

  /// The last calls of this rank, oldest first, one a line (at most 64).
  std::string recent_calls() const;

 protected:
  Communicator(int rank, int world_size);
  struct HostPlace {
    std::string name;
    int leader = 0;
    int local_rank = 0;
    int local_size = 1;
  };
  void set_host(HostPlace place) { host_ = std::move(place); }

  // The transport. Sizes are checked and agreed before these run; world_size > 1.
  /// Shows this rank's header to all: all[r] is rank r's. No rank leaves before all have come. The
  /// transport may carry the payload along for the operation that follows; when the ranks do not
  /// agree, no exchange follows any more.
  virtual void do_agree(const CallHeader& mine, const CarriedPayload& payload,
                        std::span<CallHeader> all);
  virtual void do_broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) = 0;
  /// Messages to other ranks only.
  virtual void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) = 0;
  /// `sends` and `receives` are the messages that bring all blocks to all ranks; a transport that
  /// knows a shorter way takes it, others exchange them.
  virtual void do_all_gather_blocks(std::span<const Block> blocks, std::span<const Send> sends,
                                    std::span<const Receive> receives);

  /// "[rank 3/8] broadcast(#12, 4096 bytes, float32, root 0, config 0)": the call that is running,
  /// for messages of the transport.
  std::string current_call() const;

  /// Around every public operation, for those who watch.
  virtual void on_call_begun(const CallHeader& call) {}
  virtual void on_call_ended() {}

 private:
  static constexpr size_t kRingSize = 64;

  /// The time of one call. Inside a wait for units it counts for that.
  class Running {
   public:
    explicit Running(Communicator& comm)
        : comm_(comm), activity_(activity_of_call(Activity::kCommunication)) {}
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { comm_.on_call_ended(); }

   private:
    Communicator& comm_;
    ActivityScope activity_;
  };
  static Activity activity_of_call(Activity activity) {
    return ActivityScope::current() == Activity::kUnits ? Activity::kUnits : activity;
  }
  /// Numbers and remembers a call, fills in what every call carries.
  [[nodiscard]] Running begin_call(CallHeader call);
  /// Compares the running call over ranks; calls_ holds the headers of all ranks then.
  void agree(const CarriedPayload& payload = {});
  void agree_on_messages(std::span<const Send> sends, std::span<const Receive> receives);
  [[noreturn]] void throw_message_mismatch(std::span<const Send> sends,
                                           std::span<const Receive> receives);
  void check_peer(int peer) const;

  int rank_;
  int world_size_;
  HostPlace host_;
  uint64_t config_word_ = 0;
  uint64_t num_calls_ = 0;
  CallHeader current_;
  std::vector<CallHeader> calls_;  // of all ranks, from the last agree()
  std::vector<Send> outgoing_;     // of the call that runs, without what stays here
  std::vector<Receive> incoming_;
  void count_messages();
  Traffic exchanged_;
  std::vector<uint64_t> index_;  // [peer], scratch of digests
  std::array<CallHeader, kRingSize> ring_{};
};

/// A group of one: every operation is a correct copy or nothing.
std::unique_ptr<Communicator> make_single_communicator();
struct MpiOptions {
  /// Taken from SHARDTUNE_TRANSPORT: auto | shm | mpi; "" or unset is auto. `shm`: an error instead
  /// of MPI when ranks of a host cannot share memory; `mpi`: MPI for everything.
  std::string transport = transport_from_environment();
  /// For tests: ranks are taken as spread over so many hosts in turn; 0 = as they are.
  int num_pretended_hosts = 0;

  static std::string transport_from_environment();
};
/// MPI_COMM_WORLD. Initialises MPI (serialized) and finalises it when destroyed; once per process.
/// Ranks of one host exchange through shared memory (parallel/shared_memory_transport.h), all watch
/// each other (parallel/heartbeat.h).
/// Errors  ConfigError: transport is no known word; CommError: it cannot be had
std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options = {});
/// True when mpirun or another PMI launcher started this process.
bool started_by_mpi();
/// MPI when started by it, else single (which never touches MPI).
std::unique_ptr<Communicator> make_communicator();

/// Throws RankMismatchError on every rank when the bytes differ anywhere, naming `name`, the ranks
/// and (printable text up to 200 characters) both values. For config hash, binary version,
/// instruction set and library versions at start.
void check_same_on_all_ranks(Communicator& comm, std::string_view name, std::string_view value);

}  // namespace shardtune::parallel
