// Who is lost: the rule of the heartbeats, without clocks, threads and sockets. Rank 0 judges all
// ranks; the others judge rank 0 alone.
//
// A rank is lost when its connection closed (told by the caller), when it was silent for twice the
// heartbeat, or when it stands still: no progress for its deadline while it runs outside of a call.
// A rank that waits inside a call waits for somebody, so it is blamed only when all ranks stand
// still in calls; then the one that is furthest behind.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "parallel/communicator.h"

namespace shardtune::parallel {

/// What a rank tells of itself with every beat.
struct Beat {
  int64_t step = -1;  // as in Progress
  int64_t micro_step = -1;
  int64_t unit = -1;
  uint64_t calls_begun = 0;
  uint64_t calls_ended = 0;
  uint64_t ticks = 0;  // grows with any progress
};

enum class LossReason : int32_t { kClosed, kSilent, kStandsStill, kAllStandStill };

struct Loss {
  int rank = -1;
  LossReason reason = LossReason::kClosed;
  double seconds = 0.0;  // silent or still for so long
  Beat last;             // the last that was heard
};

class HeartbeatJudge {
 public:
  enum class Watches { kAllRanks, kRankZero };  // the latter: only whether it is silent
  /// Times are seconds of one steady clock.
  HeartbeatJudge(int world_size, Watches watches, double now);

  void set_deadlines(const Deadlines& deadlines) { deadlines_ = deadlines; }
  void heard(int rank, const Beat& beat, double now);
  /// An optimizer step's duration; the automatic deadline follows their median.
  void note_step_seconds(double seconds);
  /// From now on this rank is not judged.
  void forget(int rank);
  bool is_watched(int rank) const { return ranks_[static_cast<size_t>(rank)].watched; }
  const Beat& last(int rank) const { return ranks_[static_cast<size_t>(rank)].last; }

  /// The rank that is lost by now. To be asked about every `period` seconds: after a longer gap the
  /// judge itself was stopped, and what happened meanwhile is not held against anybody.
  std::optional<Loss> judge(double now, double period);

  double step_deadline() const;

 private:
  struct Watched {
    Beat last;
    double heard = 0.0;
    double moved = 0.0;
    bool watched = true;
  };
  double deadline_of(const Watched& rank) const;
  std::optional<Loss> judge_progress(double now) const;

  Watches watches_;
  std::vector<Watched> ranks_;
  Deadlines deadlines_;
  std::deque<double> step_seconds_;  // the last 32
  double last_judged_;
};

}  // namespace shardtune::parallel
