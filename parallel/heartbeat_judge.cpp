#include "parallel/heartbeat_judge.h"

#include <algorithm>

namespace shardtune::parallel {

namespace {
constexpr size_t kStepsKept = 32;
constexpr double kShortestStepDeadline = 30.0;
constexpr double kMedianSteps = 10.0;
}  // namespace

HeartbeatJudge::HeartbeatJudge(int world_size, Watches watches, double now)
    : watches_(watches), ranks_(static_cast<size_t>(world_size)), last_judged_(now) {
  for (Watched& rank : ranks_) {
    rank.heard = rank.moved = now;
    rank.watched = watches == Watches::kAllRanks || &rank == &ranks_.front();
  }
}

void HeartbeatJudge::heard(int rank, const Beat& beat, double now) {
  Watched& watched = ranks_[static_cast<size_t>(rank)];
  watched.heard = now;
  if (beat.ticks != watched.last.ticks)
    watched.moved = now;
  watched.last = beat;
}

void HeartbeatJudge::note_step_seconds(double seconds) {
  step_seconds_.push_back(seconds);
  if (step_seconds_.size() > kStepsKept)
    step_seconds_.pop_front();
}

void HeartbeatJudge::forget(int rank) { ranks_[static_cast<size_t>(rank)].watched = false; }

double HeartbeatJudge::step_deadline() const {
  if (deadlines_.step_timeout_seconds > 0.0)
    return deadlines_.step_timeout_seconds;
  // The first step has nothing to be measured by.
  if (step_seconds_.empty())
    return std::max(deadlines_.setup_timeout_seconds, kShortestStepDeadline);
  std::vector<double> sorted(step_seconds_.begin(), step_seconds_.end());
  std::ranges::nth_element(sorted, sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2));
  return std::max(kShortestStepDeadline, kMedianSteps * sorted[sorted.size() / 2]);
}

double HeartbeatJudge::deadline_of(const Watched& rank) const {
  return rank.last.step < 0 ? deadlines_.setup_timeout_seconds : step_deadline();
}

std::optional<Loss> HeartbeatJudge::judge(double now, double period) {
  const double gap = now - last_judged_;
  last_judged_ = now;
  if (gap > 4.0 * period) {
    for (Watched& rank : ranks_) {
      rank.heard += gap;
      rank.moved += gap;
    }
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const double silent = now - ranks_[r].heard;
    if (ranks_[r].watched && silent > 2.0 * deadlines_.heartbeat_seconds)
      return Loss{static_cast<int>(r), LossReason::kSilent, silent, ranks_[r].last};
  }
  return watches_ == Watches::kAllRanks ? judge_progress(now) : std::nullopt;
}

std::optional<Loss> HeartbeatJudge::judge_progress(double now) const {
  std::optional<Loss> behind;
  bool all_still = true;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const Watched& rank = ranks_[r];
    if (!rank.watched)
      continue;
    const double still = now - rank.moved;
    if (still <= deadline_of(rank)) {
      all_still = false;
      continue;
    }
    if (rank.last.calls_begun == rank.last.calls_ended)
      return Loss{static_cast<int>(r), LossReason::kStandsStill, still, rank.last};
    if (!behind || rank.last.calls_begun < behind->last.calls_begun)
      behind = Loss{static_cast<int>(r), LossReason::kAllStandStill, still, rank.last};
  }
  return all_still ? behind : std::nullopt;
}

}  // namespace shardtune::parallel
