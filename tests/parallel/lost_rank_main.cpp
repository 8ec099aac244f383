// A job that loses a rank, started by mpirun:
//   lost_rank ACTION CALL PHASE WORD
// Every step makes the four calls. At step 17 the last rank does ACTION (kill | stop | pause | loop
// | none) at CALL (barrier | broadcast | all_gather | exchange): PHASE before, after, or inside it
// while it moves data. Ranks that are left print how they found out and leave with code 70; a job
// that nobody is lost from prints "done" and leaves with 0. WORD only marks the processes.
#include <signal.h>
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
  std::string action, call, phase;
};

// Heartbeats of half a second: lost after 1 s of silence. A pause is a fifth of the default's.
void act(const std::string& action) {
  if (action == "kill")
    raise(SIGKILL);
  if (action == "stop")
    raise(SIGSTOP);
  if (action == "pause") {
    const pid_t self = getpid();
    if (fork() == 0) {
      usleep(250'000);
      kill(self, SIGCONT);
      _exit(0);
    }
    raise(SIGSTOP);
  }
  if (action == "loop") {
    for (volatile bool busy = true; busy;) {
    }
  }
}

class Steps {
 public:
  Steps(Communicator& comm, Plan plan)
      : comm_(comm),
        plan_(std::move(plan)),
        mine_((size_t{24} << 20)),
        all_(mine_.size() * static_cast<size_t>(comm.world_size())) {}

  void run(int64_t step) {
    comm_.note_progress({step, 0});
    acts_ = step == kStep && comm_.rank() == comm_.world_size() - 1;
    // Much data only where somebody is to be lost while it moves.
    size_ = step == kStep && plan_.phase == "inside" ? mine_.size() : 70001;
    call("barrier", [&] { comm_.barrier(); });
    call("broadcast",
         [&] { comm_.broadcast(std::span(mine_).first(size_), comm_.world_size() - 1); });
    call("all_gather", [&] {
      comm_.all_gather(std::span(mine_).first(size_),
                       std::span(all_).first(size_ * static_cast<size_t>(comm_.world_size())));
    });
    call("exchange", [&] { exchange(); });
    comm_.note_progress({});
  }

 private:
  template <typename Call>
  void call(const std::string& name, const Call& make) {
    const bool here = acts_ && name == plan_.call;
    if (here && plan_.phase == "before")
      act(plan_.action);
    std::thread other;
    if (here && plan_.phase == "inside")
      other = std::thread([this] {
        usleep(3000);
        act(plan_.action);
      });
    // Again and again, so that it certainly runs when the other thread acts.
    const bool repeat = plan_.phase == "inside" && name == plan_.call && size_ == mine_.size();
    for (int i = 0; i < (repeat ? 1000 : 1); ++i)
      make();
    if (other.joinable())
      other.join();
    if (here && plan_.phase == "after")
      act(plan_.action);
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
  size_t size_ = 0;
  bool acts_ = false;
};

// Gives the other ranks the time to print, as launch/ does.
[[noreturn]] void leave(const char* how, const std::string& message) {
  std::fprintf(stderr, "%s: %s\n", how, message.c_str());
  usleep(500'000);
  _exit(70);
}

}  // namespace
}  // namespace shardtune::parallel

int main(int argc, char** argv) {
  using namespace shardtune::parallel;
  if (argc != 5)
    return 64;
  const auto comm = make_communicator();
  comm->on_lost_peer([](const std::string& message) { leave("reported", message); });
  comm->set_deadlines({.heartbeat_seconds = 0.5, .step_timeout_seconds = 1.0});
  try {
    Steps steps(*comm, {argv[1], argv[2], argv[3]});
    for (int64_t step = kStep - 2; step <= kStep + 2; ++step)
      steps.run(step);
  } catch (const LostPeerError& error) {
    leave("thrown", error.what());
  }
  if (comm->rank() == 0)
    std::printf("done\n");
  return 0;
}
