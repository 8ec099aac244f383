// Heartbeats: every rank has one small thread that tells rank 0 four times a second that it lives
// and where it stands, over a connection of its own (parallel/heartbeat_channel.h). Rank 0 judges
// (parallel/heartbeat_judge.h) and tells all ranks who is lost; all judge rank 0. A connection that
// closes without a goodbye is a death, known at once.
//
// After a loss nobody may wait for ever: a rank that waits in a call throws LostPeerError from it
// (throw_if_lost); for a rank that computes, or is stuck in MPI, the thread runs the installed
// report, which ends the process. The thread of a rank makes no MPI call, and blocks all signals.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/heartbeat_channel.h"

namespace shardtune::parallel {

/// The connections of a rank: rank 0 has one to each other rank, the others one to rank 0. [rank]
using Connections = std::vector<std::unique_ptr<Connection>>;

class Heartbeat {
 public:
  /// host_names[rank]. Starts the thread.
  Heartbeat(int rank, std::vector<std::string> host_names, Connections connections);
  /// Says goodbye unless leave_failed() was called: the others then take this rank as lost.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  void set_deadlines(const Deadlines& deadlines);
  void on_lost(std::function<void(const std::string&)> report);

  // Progress of this rank, from any thread.
  void note_progress(const Progress& progress);
  void note_unit(int64_t unit);
  void note_call_begun(const CallHeader& call);
  void note_call_ended();

  /// LostPeerError "<call>: rank 1 on host h was lost (...) ..." once a rank is lost. From then on
  /// the caller has some seconds to end the process, before the report does.
  void throw_if_lost(const std::string& call);
  bool is_lost() const { return lost_.load(std::memory_order_acquire); }

  /// Tells all ranks that this one ends the job with an exit code and says why itself: they are not
  /// to report it as lost.
  void announce_ending(int exit_code) noexcept;
  void leave_failed() { failed_ = true; }

 private:
  void run();
  Beat own_beat() const;
  void send_beats();
  void wait_for_messages();
  void receive_from(int peer);
  void handle(int peer, const Message& message);
  void relay(const Message& message, int except);
  void take_loss(const Loss& loss);
  void declare_loss(const Loss& loss);
  void say_goodbye();
  void end_after_loss(std::unique_lock<std::mutex>& lock);
  void end_after_ending(std::unique_lock<std::mutex>& lock);
  std::string describe(const Loss& loss) const;
  std::string place() const;
  bool is_hub() const { return rank_ == 0; }

  const int rank_;
  const std::vector<std::string> host_names_;
  Connections connections_;  // of the thread, apart from sending
  int wake_descriptor_ = -1;

  std::atomic<int64_t> step_{-1};
  std::atomic<int64_t> micro_step_{-1};
  std::atomic<int64_t> unit_{-1};
  std::atomic<uint64_t> calls_begun_{0};
  std::atomic<uint64_t> calls_ended_{0};
  std::atomic<uint64_t> ticks_{0};
  std::atomic<uint64_t> call_word_{0};  // kind and sequence of the last call
  std::atomic<bool> lost_{false};

  mutable std::mutex mutex_;  // guards what follows, and sending
  std::condition_variable changed_;
  HeartbeatJudge judge_;
  std::function<void(const std::string&)> report_;
  std::string loss_text_;
  double step_began_ = 0.0;
  int64_t last_step_ = -1;  // finished
  bool claimed_ = false;    // a caller throws
  bool ending_ = false;     // some rank ends the job and says why
  bool stop_ = false;
  std::string ending_text_;

  bool failed_ = false;
  std::thread thread_;
};

}  // namespace shardtune::parallel
