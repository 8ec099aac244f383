// The calls that one rank of a run makes in an optimizer step, taken from the engine itself for
// simulate.py: trainer::train_step runs with a communicator that stands for N ranks and writes down
// what it is asked for.
//   scaling_schedule record CONFIG.yaml RANKS [--set ...]   no weights count, nothing is computed
//   scaling_schedule measure CONFIG.yaml STEPS [--set ...]  one rank for real: seconds of every
//   lease
// Prints one JSON object. In a recording loops over data do not run (core/dry_run.h), and what
// other ranks would send stays as it is: sizes of messages depend on neither, except rows of
// embedding tables, which are taken as if all ranks had this rank's tokens.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/dry_run.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "trainer/config.h"
#include "trainer/job.h"
#include "trainer/step.h"

namespace {

using namespace shardtune;
using parallel::CallHeader;
using parallel::CarriedPayload;
using parallel::Receive;
using parallel::Send;

/// Rank 0 of N ranks that are not there.
class RecordingCommunicator final : public parallel::Communicator {
 public:
  explicit RecordingCommunicator(int world_size)
      : Communicator(0, world_size), main_(std::this_thread::get_id()) {}

  std::string_view backend() const override { return "recorded"; }
  void abort(int exit_code) noexcept override { std::exit(exit_code); }
  void note_unit(int64_t unit) override { add("unit", unit, 0, 0, 0); }
  void note_progress(const parallel::Progress& progress) override {
    add("round", progress.micro_step, 0, 0, 0);
  }

  void clear() { events_.clear(); }
  std::string events_json() const {
    std::string text = "[";
    for (const Event& event : events_) {
      char line[256];
      std::snprintf(line, sizeof line, "%s\n[\"%s\", %s, %lld, %lld, %lld, %lld, %.9f]",
                    &event == events_.data() ? "" : ",", event.kind,
                    event.is_main ? "true" : "false", static_cast<long long>(event.id),
                    static_cast<long long>(event.messages), static_cast<long long>(event.sent),
                    static_cast<long long>(event.received), event.seconds);
      text += line;
    }
    return text + "]";
  }

 protected:
  void do_agree(const CallHeader& mine, const CarriedPayload&, std::span<CallHeader> all) override {
    add("agree", static_cast<int64_t>(mine.kind), 0, 0, 0);
    CallHeader other = mine;
    other.sent_digest = other.received_digest = 0;
    std::ranges::fill(all, other);
    // The others receive what this rank sends, and the other way round.
    all[0] = mine;
    all[1].sent_digest = mine.received_digest;
    all[1].received_digest = mine.sent_digest;
  }
  void do_broadcast(std::span<std::byte> bytes, int root) override {
    add("broadcast", root, 1, std::ssize(bytes), 0);
  }
  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    add("all_gather", 0, world_size() - 1, std::ssize(sent), std::ssize(received));
    for (int rank = 0; rank < world_size(); ++rank)
      std::ranges::copy(sent, received.begin() + rank * std::ssize(sent));
  }
  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {
    int64_t sent = 0, received = 0;
    for (const Send& send : sends)
      sent += std::ssize(send.bytes);
    for (const Receive& receive : receives)
      received += std::ssize(receive.bytes);
    add("exchange", 0, std::ssize(sends), sent, received);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Event {
    const char* kind;
    bool is_main;
    int64_t id, messages, sent, received;
    double seconds;
  };

  void add(const char* kind, int64_t id, int64_t messages, int64_t sent, int64_t received) {
    const std::lock_guard lock(mutex_);
    events_.push_back({kind, std::this_thread::get_id() == main_, id, messages, sent, received,
                       std::chrono::duration<double>(Clock::now() - start_).count()});
  }

  std::thread::id main_;
  std::mutex mutex_;  // gathers run on a thread of their own
  std::vector<Event> events_;
  Clock::time_point start_ = Clock::now();
};

void print(const RecordingCommunicator& comm, const trainer::Job& job, int64_t tokens) {
  std::printf(
      "{\"ranks\": %d, \"threads\": %d, \"tokens\": %lld, \"trained\": %lld,\n\"events\": %s}\n",
      comm.world_size(), num_threads(), static_cast<long long>(tokens),
      static_cast<long long>(job.store->num_trainable_elements()), comm.events_json().c_str());
}

int run(int argc, char** argv) {
  const std::string mode = argc > 3 ? argv[1] : "";
  if (mode != "record" && mode != "measure")
    throw ConfigError("scaling_schedule: expected 'record CONFIG RANKS' or 'measure CONFIG STEPS'");
  const int number = std::atoi(argv[3]);
  std::vector<std::string> overrides;
  for (int i = 4; i + 1 < argc; i += 2)
    overrides.emplace_back(argv[i + 1]);
  const trainer::RunConfig config = trainer::load_config(argv[2], overrides);
  if (config.parallel.threads > 0)
    set_num_threads(static_cast<int>(config.parallel.threads));
  RecordingCommunicator comm(mode == "record" ? number : 1);
  trainer::Job job(config, comm);
  trainer::check_inputs(job);
  if (mode == "record") {
    const DryRun dry_run;
    trainer::load(job);
    comm.clear();
    const trainer::StepResult step = trainer::train_step(job, 0);
    print(comm, job, step.num_tokens);
    job.states.reset();
    job.adapter.reset();
    job.model.reset();
    job.store.reset();
    return 0;
  }
  trainer::load(job);
  trainer::probe_longest_micro_batch(job, 0);
  comm.clear();
  int64_t tokens = 0;
  for (int step = 0; step < number; ++step)
    tokens += trainer::train_step(job, step).num_tokens;
  comm.note_progress({});
  print(comm, job, tokens);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
}
