// A job that loses a rank, started by mpirun:
//   lost_rank ACTION CALL PHASE PATH
// Every step makes all twelve calls. At step 17 the last rank does ACTION (kill | stop | pause |
// loop) at CALL: PHASE before, after, or inside it while it moves data. Ranks that are left print
// how they found out, add "left" to PATH.left and leave with code 70; a job that nobody is lost
// from prints "done" and leaves with 0. PATH marks the processes too; PATH.at is when it happened,
// in seconds of the monotonic clock.
//   lost_rank soak STEPS 0 PATH
// STEPS steps with the heartbeat's own 10 s, in each 50th of which the last rank pauses for 5 s.
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"

namespace shardtune::parallel {
namespace {

constexpr int64_t kStep = 17;

struct Plan {
  std::string action, call, phase, path;
};

void append(const std::string& path, const std::string& line) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  [[maybe_unused]] const ssize_t written = write(file, line.data(), line.size());
  close(file);
}

void pause_for(useconds_t microseconds) {
  const pid_t self = getpid();
  if (fork() == 0) {
    usleep(microseconds);
    kill(self, SIGCONT);
    _exit(0);
  }
  raise(SIGSTOP);
}

// Heartbeats of half a second: lost after 1 s of silence. A pause is a quarter of that.
void act(const Plan& plan) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  append(plan.path + ".at",
         std::to_string(static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9));
  if (plan.action == "kill")
    raise(SIGKILL);
  if (plan.action == "stop")
    raise(SIGSTOP);
  if (plan.action == "pause")
    pause_for(250'000);
  if (plan.action == "loop") {
    for (volatile bool busy = true; busy;) {
    }
  }
}

class Steps {
 public:
  Steps(Communicator& comm, Plan plan)
      : comm_(comm),
        plan_(std::move(plan)),
        mine_(size_t{6} << 20),
        all_(mine_.size() * static_cast<size_t>(comm.world_size())) {}

  void run(int64_t step) {
    step_ = step;
    comm_.note_progress({step, 0});
    acts_ = step == kStep && comm_.rank() == comm_.world_size() - 1;
    call("barrier", [&] { comm_.barrier(); });
    call("broadcast",
         [&] { comm_.broadcast(std::span(mine_).first(size_), comm_.world_size() - 1); });
    call("all_gather", [&] {
      comm_.all_gather(std::span(mine_).first(size_),
                       std::span(all_).first(size_ * static_cast<size_t>(comm_.world_size())));
    });
    call("all_gather_blocks", [&] { all_gather_blocks(); });
    call("exchange", [&] { exchange(); });
    call("all_gather_value", [&] { comm_.all_gather_value(step); });
    const auto text = [this] {
      return std::string_view(reinterpret_cast<const char*>(mine_.data()), size_);
    };
    call("all_gather_bytes", [&] { comm_.all_gather_bytes(std::span(mine_).first(size_)); });
    call("all_gather_strings", [&] { comm_.all_gather_strings(text()); });
    call("all_reduce_max", [&] { comm_.all_reduce_max(step); });
    call("all_reduce_min", [&] { comm_.all_reduce_min(step); });
    call("all_reduce_sum", [&] { comm_.all_reduce_sum(step); });
    call("check_same_on_all_ranks", [&] { check_same_on_all_ranks(comm_, "text", text()); });
    comm_.note_progress({});
  }

 private:
  template <typename Call>
  void call(const std::string& name, const Call& make) {
    const bool here = acts_ && name == plan_.call;
    if (here && plan_.phase == "before")
      act(plan_);
    std::thread other;
    if (here && plan_.phase == "inside")
      other = std::thread([this] {
        usleep(3000);
        act(plan_);
      });
    // Much data where somebody is to be lost while it moves, and again and again, so that the call
    // certainly runs then.
    const bool repeat = step_ == kStep && plan_.phase == "inside" && name == plan_.call;
    size_ = repeat ? mine_.size() : 70001;
    for (int i = 0; i < (repeat ? 100'000 : 1); ++i)
      make();
    if (other.joinable())
      other.join();
    if (here && plan_.phase == "after")
      act(plan_);
  }

  void all_gather_blocks() {
    std::vector<Block> blocks;
    for (int owner = 0; owner < comm_.world_size(); ++owner)
      blocks.push_back({owner, std::span(all_).subspan(static_cast<size_t>(owner) * size_, size_)});
    comm_.all_gather_blocks(blocks);
  }

  void exchange() {
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int peer = 0; peer < comm_.world_size(); ++peer) {
      sends.push_back({peer, std::span(mine_).first(size_)});
      receives.push_back({peer, std::span(all_).subspan(static_cast<size_t>(peer) * size_, size_)});
    }
    comm_.exchange(sends, receives);
  }

  Communicator& comm_;
  Plan plan_;
  std::vector<std::byte> mine_, all_;
  int64_t step_ = 0;
  size_t size_ = 0;
  bool acts_ = false;
};

// Gives the other ranks the time to print, whatever mpirun sends meanwhile, as launch/ does.
[[noreturn]] void leave(const char* how, const std::string& message, const std::string& path) {
  signal(SIGTERM, SIG_IGN);
  std::fprintf(stderr, "%s: %s\n", how, message.c_str());
  append(path + ".left", "left\n");
  usleep(500'000);
  _exit(70);
}

void soak(Communicator& comm, int64_t num_steps) {
  Steps steps(comm, {});
  for (int64_t step = 1; step <= num_steps; ++step) {
    if (step % 50 == 0 && comm.rank() == comm.world_size() - 1)
      pause_for(5'000'000);
    steps.run(step);
  }
}

}  // namespace
}  // namespace shardtune::parallel

int main(int argc, char** argv) {
  using namespace shardtune::parallel;
  if (argc != 5)
    return 64;
  const auto comm = make_communicator();
  const Plan plan{argv[1], argv[2], argv[3], argv[4]};
  comm->on_lost_peer([plan](const std::string& message) { leave("reported", message, plan.path); });
  try {
    if (plan.action == "soak") {
      soak(*comm, std::atoll(plan.call.c_str()));
    } else {
      comm->set_deadlines({.heartbeat_seconds = 0.5, .step_timeout_seconds = 1.0});
      Steps steps(*comm, plan);
      for (int64_t step = kStep - 2; step <= kStep + 2; ++step)
        steps.run(step);
    }
  } catch (const LostPeerError& error) {
    leave("thrown", error.what(), plan.path);
  }
  if (comm->rank() == 0)
    std::printf("done\n");
  return 0;
}
