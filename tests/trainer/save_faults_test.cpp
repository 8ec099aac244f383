// R14 and R16 on saving: a child process is killed at every system call of a save, before it, after
// it and in the middle of a write, or gets an error or a short write from it. Whatever happens, the
// newest committed checkpoint loads whole, and nothing that was committed is lost.
//
// The calls are counted by functions of this program that stand in front of the C library's.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <optional>

#include "core/error.h"
#include "tests/trainer/tiny_model.h"
#include "tests/trainer/whole_checkpoint.h"
#include "trainer/checkpoint.h"

namespace {

enum class Fault {
  kNone,
  kKillBefore,
  kKillAfter,
  kTornWrite,
  kErrno,
  kShortWrite,
  kFlippedWrite,  // tells success and stores another byte
};

struct Plan {
  Fault fault = Fault::kNone;
  int at = 0;  // 1-based number of the call
  int error = 0;
  int seen = 0;
  bool armed = false;
};
Plan g_plan;  // of the child, which has one thread

// Whether the running call is the one with the fault; kills where that comes first.
bool is_due() {
  if (!g_plan.armed || ++g_plan.seen != g_plan.at)
    return false;
  if (g_plan.fault == Fault::kKillBefore)
    raise(SIGKILL);
  return true;
}

template <typename Function>
Function next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

/// A call of the C library's function `real` that may fail or be the process's last.
template <typename Function, typename... Arguments>
auto counted(Function real, Arguments... arguments) -> decltype(real(arguments...)) {
  const bool due = is_due();
  if (due && g_plan.fault == Fault::kErrno) {
    errno = g_plan.error;
    return -1;
  }
  const auto result = real(arguments...);
  if (due && g_plan.fault == Fault::kKillAfter)
    raise(SIGKILL);
  return result;
}

}  // namespace

extern "C" {
// A process that dies loses nothing that the kernel has, so the disk itself is not waited for.
int fsync(int) {
  return counted([](int) { return 0; }, 0);
}
int rename(const char* from, const char* to) noexcept {
  return counted(next(&rename, "rename"), from, to);
}
int unlink(const char* path) noexcept { return counted(next(&unlink, "unlink"), path); }
int unlinkat(int folder, const char* path, int flags) noexcept {
  return counted(next(&unlinkat, "unlinkat"), folder, path, flags);
}
int mkdir(const char* path, mode_t mode) noexcept {
  return counted(next(&mkdir, "mkdir"), path, mode);
}

ssize_t write(int fd, const void* bytes, size_t count) {
  static const auto real = next(&write, "write");
  const bool due = is_due();
  if (due && g_plan.fault == Fault::kErrno) {
    errno = g_plan.error;
    return -1;
  }
  const bool part =
      due && (g_plan.fault == Fault::kTornWrite || g_plan.fault == Fault::kShortWrite);
  std::string flipped;
  if (due && g_plan.fault == Fault::kFlippedWrite) {
    flipped.assign(static_cast<const char*>(bytes), count);
    flipped[count / 2] ^= 1;
    bytes = flipped.data();
  }
  const ssize_t result = real(fd, bytes, part ? (count + 1) / 2 : count);
  if (due && (g_plan.fault == Fault::kKillAfter || g_plan.fault == Fault::kTornWrite))
    raise(SIGKILL);
  return result;
}

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const auto mode = static_cast<mode_t>((flags & O_CREAT) != 0 ? va_arg(list, unsigned) : 0);
  va_end(list);
  static const auto real =
      reinterpret_cast<int (*)(const char*, int, ...)>(dlsym(RTLD_NEXT, "open"));
  const bool due = (flags & O_CREAT) != 0 && is_due();
  if (due && g_plan.fault == Fault::kErrno) {
    errno = g_plan.error;
    return -1;
  }
  const int result = real(path, flags, mode);
  if (due && g_plan.fault == Fault::kKillAfter)
    raise(SIGKILL);
  return result;
}
}

namespace shardtune::trainer {
namespace {

using testing::read_checkpoint;
using testing::TempFolder;

// A checkpoint whose every value names its step and version.
Checkpoint example(int64_t step, float version) {
  Checkpoint checkpoint;
  checkpoint.step = step;
  const float mark = static_cast<float>(step) + version / 16;
  checkpoint.adapter = {{"a.weight", {300, 100}, std::vector<float>(30'000, mark)}};
  checkpoint.optimizer = {{"a.weight.exp_avg", {300, 100}, std::vector<float>(30'000, -mark)}};
  return checkpoint;
}

constexpr int64_t kLimit = 2;

// What Loop::save does on rank 0.
void save(const fs::path& folder, int64_t step, float version) {
  write_partial_checkpoint(folder, example(step, version));
  commit_checkpoint(folder, step);
  rotate_checkpoints(folder, step, kLimit);
}

// A save after two others: of a new step, or of the newest step once more (after a resume).
struct Scenario {
  const char* name;
  int64_t step;
  float version;
};
constexpr Scenario kScenarios[] = {{"new", 3, 0}, {"again", 2, 1}};

enum class End { kDone, kKilled, kRefused, kOther };
struct Outcome {
  End end = End::kOther;
  int calls = 0;
};

// The child's exit code when the save was refused: it could not be written, or came back different.
constexpr int kRefusedCode = 3;

// Runs the save in a child with the fault; the child tells the number of its calls.
Outcome save_in_child(const fs::path& folder, const Scenario& scenario, const Plan& plan) {
  int ends[2] = {-1, -1};
  if (pipe(ends) != 0)
    return {};
  const pid_t child = fork();
  if (child == 0) {
    int code = 0;
    g_plan = plan;
    g_plan.armed = true;
    try {
      save(folder, scenario.step, scenario.version);
    } catch (const WriteError&) {
      code = kRefusedCode;
    } catch (const CorruptBlockError&) {
      code = kRefusedCode;
    } catch (...) {
      code = 4;
    }
    g_plan.armed = false;
    [[maybe_unused]] const ssize_t sent = write(ends[1], &g_plan.seen, sizeof g_plan.seen);
    _exit(code);
  }
  close(ends[1]);
  Outcome outcome;
  if (read(ends[0], &outcome.calls, sizeof outcome.calls) != sizeof outcome.calls)
    outcome.calls = 0;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
    outcome.end = End::kKilled;
  else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    outcome.end = End::kDone;
  else if (WIFEXITED(status) && WEXITSTATUS(status) == kRefusedCode)
    outcome.end = End::kRefused;
  return outcome;
}

class SaveFaults : public ::testing::TestWithParam<Scenario> {
 protected:
  // A fresh run folder with two committed checkpoints.
  static void prepare(const fs::path& folder) {
    fs::remove_all(folder);
    fs::create_directories(folder);
    save(folder, 1, 0);
    save(folder, 2, 0);
  }

  // Starts as the program does after a crash; returns the newest checkpoint's mark.
  static std::optional<float> newest_mark(const fs::path& folder) {
    remove_stale_partials(folder);
    const auto path = find_newest_checkpoint(folder);
    if (!path)
      return std::nullopt;
    const Checkpoint checkpoint = read_checkpoint(*path);
    for (const float value : checkpoint.adapter.at(0).values)
      EXPECT_EQ(value, checkpoint.adapter[0].values[0]);
    EXPECT_EQ(checkpoint.optimizer.at(0).values.back(), -checkpoint.adapter[0].values[0]);
    return checkpoint.adapter[0].values[0];
  }

  int num_calls(const fs::path& folder) const {
    prepare(folder);
    const Outcome outcome = save_in_child(folder, GetParam(), {});
    EXPECT_EQ(outcome.end, End::kDone);
    return outcome.calls;
  }

  // The old state or the new one, and a save afterwards works.
  void expect_nothing_lost(const fs::path& folder, const std::string& what) const {
    const float before = 2.0f;
    const float after = static_cast<float>(GetParam().step) + GetParam().version / 16;
    const auto mark = newest_mark(folder);
    ASSERT_TRUE(mark.has_value()) << what;
    EXPECT_TRUE(*mark == before || *mark == after) << what << ": found " << *mark;
    save(folder, 4, 0);
    EXPECT_EQ(newest_mark(folder), 4.0f) << what;
    EXPECT_LE(list_checkpoints(folder).size(), static_cast<size_t>(kLimit)) << what;
  }

  TempFolder folder_;
};

TEST_P(SaveFaults, AKillAtAnyCallLosesNothing) {
  const fs::path run = folder_.path() / "run";
  const int calls = num_calls(run);
  ASSERT_GT(calls, 10) << "the calls of a save are not seen";
  for (const Fault fault : {Fault::kKillBefore, Fault::kKillAfter, Fault::kTornWrite}) {
    for (int at = 1; at <= calls; ++at) {
      prepare(run);
      const Outcome outcome = save_in_child(run, GetParam(), {fault, at});
      ASSERT_TRUE(outcome.end == End::kKilled || fault == Fault::kTornWrite);
      expect_nothing_lost(run, "fault " + std::to_string(static_cast<int>(fault)) + " at call " +
                                   std::to_string(at));
    }
  }
}

TEST_P(SaveFaults, AnErrorOfAnyCallIsToldAndLosesNothing) {
  const fs::path run = folder_.path() / "run";
  const int calls = num_calls(run);
  for (const int error : {ENOSPC, EIO}) {
    for (int at = 1; at <= calls; ++at) {
      prepare(run);
      const Outcome outcome = save_in_child(run, GetParam(), {Fault::kErrno, at, error});
      // Done: the call belonged to the removal of what is no longer needed, which only warns.
      ASSERT_TRUE(outcome.end == End::kRefused || outcome.end == End::kDone) << at;
      expect_nothing_lost(run, "errno " + std::to_string(error) + " at call " + std::to_string(at));
    }
  }
}

TEST_P(SaveFaults, ShortWritesAndInterruptionsAreGoneThrough) {
  const fs::path run = folder_.path() / "run";
  const int calls = num_calls(run);
  const float after = static_cast<float>(GetParam().step) + GetParam().version / 16;
  for (int at = 1; at <= calls; ++at) {
    prepare(run);
    ASSERT_EQ(save_in_child(run, GetParam(), {Fault::kShortWrite, at}).end, End::kDone) << at;
    EXPECT_EQ(newest_mark(run), after) << at;
  }
}

// What the disk stored differently is found before it is committed, so the checkpoint before it is
// still there and nothing older was removed for it.
TEST_P(SaveFaults, AByteThatIsStoredDifferentlyIsFoundBeforeTheRename) {
  const fs::path run = folder_.path() / "run";
  const int calls = num_calls(run);
  int refused = 0;
  for (int at = 1; at <= calls; ++at) {
    prepare(run);
    const Outcome outcome = save_in_child(run, GetParam(), {Fault::kFlippedWrite, at});
    // Done: the call was no write.
    ASSERT_TRUE(outcome.end == End::kRefused || outcome.end == End::kDone) << at;
    refused += outcome.end == End::kRefused ? 1 : 0;
    for (const auto& [step, folder] : list_checkpoints(run))
      ASSERT_NO_THROW(verify_folder(folder)) << at;
    expect_nothing_lost(run, "flipped write at call " + std::to_string(at));
  }
  EXPECT_GE(refused, 4) << "two files of tensors, state and manifest are written";
}

INSTANTIATE_TEST_SUITE_P(Saves, SaveFaults, ::testing::ValuesIn(kScenarios),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace shardtune::trainer
