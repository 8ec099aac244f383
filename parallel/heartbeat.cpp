#include "parallel/heartbeat.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>

namespace shardtune::parallel {

namespace {
using std::chrono::milliseconds;

constexpr int kBeatMs = 250;
constexpr double kBeatSeconds = kBeatMs * 1e-3;
// What a rank gets to leave by itself: to find the loss in a call, and then to end.
constexpr milliseconds kToFind{300};
constexpr milliseconds kToEnd{10000};
constexpr double kGoodbyeSeconds = 0.5;
// How long the rank that ends the job has for it.
constexpr milliseconds kEndingPatience{8000};

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string reason_text(const Loss& loss) {
  switch (loss.reason) {
    case LossReason::kClosed:
      return "its connection closed";
    case LossReason::kSilent:
      return fmt::format("no heartbeat for {:.1f} s: stopped or unreachable", loss.seconds);
    case LossReason::kStandsStill:
      return fmt::format("no progress for {:.1f} s while all wait for it", loss.seconds);
    case LossReason::kAllStandStill:
      return fmt::format("no rank made progress for {:.1f} s and it is furthest behind",
                         loss.seconds);
  }
  return "unknown reason";
}

/// `last_step`: the one the rank finished before, where known.
std::string step_text(const Beat& beat, int64_t last_step = -1) {
  if (beat.step < 0)
    return last_step < 0 ? "outside of steps" : fmt::format("after step {}", last_step);
  std::string text = fmt::format("at step {}", beat.step);
  if (beat.micro_step >= 0)
    text += fmt::format(", micro-step {}", beat.micro_step);
  if (beat.unit >= 0)
    text += fmt::format(", unit {}", beat.unit);
  return text;
}
}  // namespace

Heartbeat::Heartbeat(int rank, std::vector<std::string> host_names, Connections connections)
    : rank_(rank),
      host_names_(std::move(host_names)),
      connections_(std::move(connections)),
      wake_descriptor_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      judge_(static_cast<int>(host_names_.size()),
             rank == 0 ? HeartbeatJudge::Watches::kAllRanks : HeartbeatJudge::Watches::kRankZero,
             now_seconds()) {
  if (wake_descriptor_ < 0)
    throw CommError("heartbeat: eventfd failed: too many open files? Raise 'ulimit -n'.");
  // Signals are for the threads of the program.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

Heartbeat::~Heartbeat() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (!failed_)
      relay({.kind = MessageKind::kBye, .rank = rank_}, -1);
  }
  changed_.notify_all();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_descriptor_, &one, sizeof one);
  thread_.join();
  close(wake_descriptor_);
}

void Heartbeat::set_deadlines(const Deadlines& deadlines) {
  const std::lock_guard lock(mutex_);
  judge_.set_deadlines(deadlines);
}

void Heartbeat::on_lost(std::function<void(const std::string&)> report) {
  const std::lock_guard lock(mutex_);
  report_ = std::move(report);
}

void Heartbeat::note_progress(const Progress& progress) {
  const int64_t before = step_.exchange(progress.step, std::memory_order_relaxed);
  micro_step_.store(progress.micro_step, std::memory_order_relaxed);
  unit_.store(-1, std::memory_order_relaxed);
  ticks_.fetch_add(1, std::memory_order_relaxed);
  if (before == progress.step)
    return;
  const double now = now_seconds();
  const std::lock_guard lock(mutex_);
  if (before >= 0) {
    judge_.note_step_seconds(now - step_began_);
    last_step_ = before;
  }
  step_began_ = now;
}

void Heartbeat::note_unit(int64_t unit) {
  unit_.store(unit, std::memory_order_relaxed);
  ticks_.fetch_add(1, std::memory_order_relaxed);
}

void Heartbeat::note_call_begun(const CallHeader& call) {
  call_word_.store(call.sequence << 8 | call.kind, std::memory_order_relaxed);
  calls_begun_.fetch_add(1, std::memory_order_relaxed);
  ticks_.fetch_add(1, std::memory_order_relaxed);
}

void Heartbeat::note_call_ended() {
  calls_ended_.fetch_add(1, std::memory_order_relaxed);
  ticks_.fetch_add(1, std::memory_order_relaxed);
}

void Heartbeat::throw_if_lost(const std::string& call) {
  if (!is_lost())
    return;
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    claimed_ = true;
    text = loss_text_;
  }
  changed_.notify_all();
  throw LostPeerError(call + ": " + text);
}

void Heartbeat::announce_ending(int exit_code) noexcept {
  const std::lock_guard lock(mutex_);
  if (ending_)
    return;
  ending_ = true;
  relay({.kind = MessageKind::kEnding, .rank = rank_, .detail = exit_code}, -1);
}

Beat Heartbeat::own_beat() const {
  Beat beat;
  beat.step = step_.load(std::memory_order_relaxed);
  beat.micro_step = micro_step_.load(std::memory_order_relaxed);
  beat.unit = unit_.load(std::memory_order_relaxed);
  beat.calls_ended = calls_ended_.load(std::memory_order_relaxed);
  beat.calls_begun = calls_begun_.load(std::memory_order_relaxed);
  beat.ticks = ticks_.load(std::memory_order_relaxed);
  return beat;
}

/// To all connections but one. With the mutex held.
void Heartbeat::relay(const Message& message, int except) {
  for (size_t peer = 0; peer < connections_.size(); ++peer) {
    if (connections_[peer] && static_cast<int>(peer) != except)
      connections_[peer]->send(message);
  }
}

void Heartbeat::send_beats() {
  const std::lock_guard lock(mutex_);
  const Beat beat = own_beat();
  judge_.heard(rank_, beat, now_seconds());
  relay({.kind = MessageKind::kBeat, .rank = rank_, .beat = beat}, -1);
}

void Heartbeat::wait_for_messages() {
  std::vector<pollfd> waiting{{wake_descriptor_, POLLIN, 0}};
  std::vector<int> peers{-1};
  for (size_t peer = 0; peer < connections_.size(); ++peer) {
    if (!connections_[peer])
      continue;
    waiting.push_back({connections_[peer]->descriptor(), POLLIN, 0});
    peers.push_back(static_cast<int>(peer));
  }
  if (poll(waiting.data(), waiting.size(), kBeatMs) <= 0)
    return;
  for (size_t i = 1; i < waiting.size(); ++i) {
    if (waiting[i].revents != 0)
      receive_from(peers[i]);
  }
}

void Heartbeat::receive_from(int peer) {
  auto& connection = connections_[static_cast<size_t>(peer)];
  std::vector<Message> messages;
  const bool open = connection->receive(messages);
  for (const Message& message : messages)
    handle(peer, message);
  const std::lock_guard lock(mutex_);
  const bool left = !judge_.is_watched(peer);
  if (open && !left)
    return;
  connection.reset();
  if (!left && !ending_ && !stop_)
    declare_loss({peer, LossReason::kClosed, 0.0, judge_.last(peer)});
}

void Heartbeat::handle(int peer, const Message& message) {
  const std::lock_guard lock(mutex_);
  switch (message.kind) {
    case MessageKind::kBeat:
      judge_.heard(peer, message.beat, now_seconds());
      break;
    case MessageKind::kBye:
      judge_.forget(peer);
      break;
    case MessageKind::kLoss:
      take_loss(
          {message.rank, static_cast<LossReason>(message.detail), message.seconds, message.beat});
      break;
    case MessageKind::kEnding:
      ending_ = true;
      ending_text_ = fmt::format(
          "[rank {}/{}] rank {} ended the job with code {}, and this rank was not ended by the "
          "launcher. Look for the first error of any rank.",
          rank_, host_names_.size(), message.rank, message.detail);
      if (is_hub())
        relay(message, peer);
      break;
    case MessageKind::kHello:
    case MessageKind::kWelcome:
      break;
  }
}

/// With the mutex held, as the next one.
void Heartbeat::take_loss(const Loss& loss) {
  if (is_lost())
    return;
  loss_text_ = describe(loss);
  lost_.store(true, std::memory_order_release);
}

void Heartbeat::declare_loss(const Loss& loss) {
  if (is_lost())
    return;
  if (is_hub())
    relay({.kind = MessageKind::kLoss,
           .rank = loss.rank,
           .detail = static_cast<int32_t>(loss.reason),
           .seconds = loss.seconds,
           .beat = loss.last},
          loss.reason == LossReason::kClosed ? loss.rank : -1);
  // A stopped process would stay, and be continued when the launcher ends the job.
  const auto lost = static_cast<size_t>(loss.rank);
  if (loss.reason == LossReason::kSilent && connections_[lost])
    connections_[lost]->kill_peer();
  take_loss(loss);
}

std::string Heartbeat::describe(const Loss& loss) const {
  // The last beat of a rank that died is up to a beat old; this rank stands at the same step.
  Beat where = own_beat();
  const bool itself = loss.rank == rank_;
  std::string text = fmt::format("rank {} on host {} was lost ({}) {}", loss.rank,
                                 host_names_[static_cast<size_t>(loss.rank)], reason_text(loss),
                                 step_text(where, last_step_));
  if (!itself)
    text += fmt::format("; it told last: {}, {} calls done", step_text(loss.last),
                        loss.last.calls_ended);
  return text +
         ". Look at that rank's log and host (killed? out of memory?), then run the same command "
         "again: it goes on from the newest checkpoint.";
}

std::string Heartbeat::place() const {
  const uint64_t word = call_word_.load(std::memory_order_relaxed);
  const bool inside = calls_begun_.load() != calls_ended_.load();
  return fmt::format("[rank {}/{}] {}{}(#{})", rank_, host_names_.size(),
                     inside ? "" : "computing after ", name_of(static_cast<CallKind>(word & 0xff)),
                     word >> 8);
}

void Heartbeat::run() {
  pthread_setname_np(pthread_self(), "heartbeat");
  double next_beat = now_seconds();
  while (true) {
    if (now_seconds() >= next_beat) {
      send_beats();
      next_beat = now_seconds() + kBeatSeconds;
    }
    wait_for_messages();
    std::unique_lock lock(mutex_);
    if (stop_) {
      lock.unlock();
      say_goodbye();
      return;
    }
    if (ending_) {
      end_after_ending(lock);
      return;
    }
    if (!is_lost()) {
      if (const auto loss = judge_.judge(now_seconds(), kBeatSeconds))
        declare_loss(*loss);
    }
    if (is_lost()) {
      end_after_loss(lock);
      return;
    }
  }
}

// A TCP connection that is closed with unread bytes may take the goodbye with it, so the other end
// closes first.
void Heartbeat::say_goodbye() {
  if (failed_)
    return;
  const double end = now_seconds() + kGoodbyeSeconds;
  const auto is_open = [](const auto& connection) { return connection != nullptr; };
  while (now_seconds() < end && std::ranges::any_of(connections_, is_open))
    wait_for_messages();
}

void Heartbeat::end_after_loss(std::unique_lock<std::mutex>& lock) {
  changed_.wait_for(lock, kToFind, [this] { return claimed_ || stop_; });
  if (claimed_)
    changed_.wait_for(lock, kToEnd, [this] { return stop_; });
  if (stop_ || !report_)
    return;
  const auto report = report_;
  const std::string text = place() + ": " + loss_text_;
  lock.unlock();
  report(text);
}

void Heartbeat::end_after_ending(std::unique_lock<std::mutex>& lock) {
  changed_.wait_for(lock, kEndingPatience, [this] { return stop_; });
  if (stop_ || !report_ || ending_text_.empty())
    return;
  const auto report = report_;
  lock.unlock();
  report(ending_text_);
}

}  // namespace shardtune::parallel
