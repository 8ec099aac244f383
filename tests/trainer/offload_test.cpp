// Training with offload_optimizer and offload_param on NVMe: the bits of a run without, resume from
// one to the other, and what a failing device costs (RELIABILITY R25, R26).
#include "trainer/offload.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "tests/io/temp_folder.h"
#include "tests/support/failing_io.h"
#include "tests/trainer/small_run.h"
#include "trainer/checkpoint.h"

namespace shardtune::trainer {
namespace {

using testing::read_text;
using testing::SmallRun;

/// On one thread a rank: more threads than cores cost more time than the runs themselves.
RunConfig config(const SmallRun& small, const std::string& output,
                 std::vector<std::string> overrides = {}) {
  overrides.push_back("parallel.threads=1");
  return small.config(output, overrides);
}

std::string states_on_nvme(const SmallRun& small) {
  return "parallel.zero_optimization.offload_optimizer={device: nvme, nvme_path: \"" +
         small.path("").string() + "\"}";
}

std::string base_on_nvme(const SmallRun& small) {
  return "parallel.zero_optimization.offload_param={device: nvme, nvme_path: \"" +
         small.path("").string() + "\"}";
}

std::string stage(int number) {
  return "parallel.zero_optimization.stage=" + std::to_string(number);
}

/// Measures the device with few bytes.
TrainOptions quick() {
  TrainOptions options;
  options.swap.measured_bytes = 1 << 16;
  return options;
}

TrainOptions buffered() {
  TrainOptions options = quick();
  options.swap.mode = io::SwapMode::kBuffered;
  return options;
}

Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an error";
  return Error(ExitCode::kOk, "");
}

/// Losses and adapter must be those of the run "reference".
void expect_reference(const SmallRun& small, const std::string& name) {
  EXPECT_EQ(small.losses(name), small.losses("reference")) << name;
  EXPECT_TRUE(small.adapter_bytes(name) == small.adapter_bytes("reference")) << name;
}

TEST(OffloadOptimizer, TheSameBitsAsInMemory) {
  const SmallRun small;
  small.run(config(small, "reference"));
  for (int ranks = 1; ranks <= 2; ++ranks) {
    for (int number = 0; number <= 3; ++number) {
      const std::string name = "r" + std::to_string(ranks) + "s" + std::to_string(number);
      small.run(config(small, name, {states_on_nvme(small), stage(number)}), ranks);
      expect_reference(small, name);
    }
  }
  small.run(
      config(small, "recompute", {states_on_nvme(small), "training.gradient_checkpointing=true"}));
  expect_reference(small, "recompute");
  small.run(config(small, "buffered", {states_on_nvme(small)}), 1, buffered());
  expect_reference(small, "buffered");
  const std::string log = read_text(small.path("buffered") / "train.log");
  EXPECT_NE(log.find("no direct asynchronous I/O here: it was asked for"), std::string::npos);
  EXPECT_NE(read_text(small.path("r1s0") / "train.log").find("offload_optimizer: "),
            std::string::npos);
}

TEST(OffloadOptimizer, ResumesFromMemoryAndBack) {
  const SmallRun small;
  small.run(config(small, "reference"));
  const std::string half = "training.stop_at_step=2";
  small.run(config(small, "to", {half}), 2);
  small.run(config(small, "to", {states_on_nvme(small), stage(2)}), 2);
  expect_reference(small, "to");
  small.run(config(small, "from", {half, states_on_nvme(small), stage(2)}), 2);
  small.run(config(small, "from", {stage(1)}), 1);
  expect_reference(small, "from");
  // The checkpoints themselves have the same optimizer bytes.
  for (const char* name : {"to", "from"}) {
    EXPECT_TRUE(read_text(small.path(name) / "checkpoint-4" / "optimizer.safetensors") ==
                read_text(small.path("reference") / "checkpoint-4" / "optimizer.safetensors"));
  }
}

TEST(OffloadOptimizer, AFailingDeviceEndsTheRunOnAllRanksAndKeepsTheCheckpoint) {
  const SmallRun small;
  small.run(config(small, "reference"));
  for (const int error : {EIO, ENOSPC}) {
    const std::string name = "error" + std::to_string(error);
    const auto failing = [&] {
      return config(small, name, {states_on_nvme(small), stage(2), "checkpoint.save_steps=1"});
    };
    // Writes fail in step 3. Checkpoint 2 may still be under way then; it is finished.
    TrainOptions options;
    options.swap.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
      return std::make_unique<testing::FailingIo>(
          std::move(io), [&](const io::IoRequest& request, int64_t count) -> int64_t {
            return request.kind == io::IoKind::kWrite && request.offset > 0 &&
                           small.num_logged(name) == 2
                       ? -error
                       : count;
          });
    };
    const Error caught = error_of([&] { small.run(failing(), 2, options); });
    EXPECT_EQ(caught.exit_code(), ExitCode::kCannotWrite) << caught.what();
    EXPECT_HAS(caught.what(), "exp_avg");
    EXPECT_HAS(caught.what(), std::strerror(error));
    // Step 3, or a later one where checkpoint 2, written meanwhile, was not there in time.
    const std::string text = caught.what();
    const std::string before = "The update of step ";
    EXPECT_HAS(text, before);
    const int step = std::atoi(text.c_str() + text.find(before) + before.size());
    EXPECT_GE(step, 3) << text;
    EXPECT_FALSE(fs::exists(small.path(name) / ("checkpoint-" + std::to_string(step))));
    const TrainResult resumed = small.run(failing(), 2);
    EXPECT_EQ(resumed.resumed_from, step - 1);
    expect_reference(small, name);
  }
}

TEST(OffloadParam, TheSameBitsAsInMemory) {
  const SmallRun small;
  small.run(config(small, "reference"));
  for (int ranks = 1; ranks <= 2; ++ranks) {
    for (int number = 0; number <= 3; ++number) {
      for (const char* recompute : {"false", "true"}) {
        const std::string name = "r" + std::to_string(ranks) + "s" + std::to_string(number);
        small.run(config(small, name + recompute,
                         {base_on_nvme(small), stage(number),
                          std::string("training.gradient_checkpointing=") + recompute}),
                  ranks, quick());
        expect_reference(small, name + recompute);
      }
    }
  }
  for (int ranks : {1, 3}) {
    const std::string name = "both" + std::to_string(ranks);
    small.run(config(small, name, {base_on_nvme(small), states_on_nvme(small), stage(3)}), ranks,
              quick());
    expect_reference(small, name);
  }
  small.run(config(small, "buffered", {base_on_nvme(small)}), 1, buffered());
  expect_reference(small, "buffered");
  EXPECT_NE(read_text(small.path("r1s0true") / "train.log").find("offload_param: the frozen base"),
            std::string::npos);
}

TEST(OffloadParam, OtherFormatsOfTheBaseToo) {
  const SmallRun small;
  for (const char* method : {"none", "int8"}) {
    const std::vector<std::string> quantization = {std::string("quantization={method: ") + method +
                                                   "}"};
    small.run(config(small, "reference", quantization), 1);
    for (int ranks = 1; ranks <= 2; ++ranks) {
      const std::string name = method + std::to_string(ranks);
      small.run(config(small, name, {quantization[0], base_on_nvme(small), stage(ranks + 1)}),
                ranks, quick());
      expect_reference(small, name);
    }
    fs::remove_all(small.path("reference"));
  }
}

/// A read of one rank that fails or brings a flipped bit: number `at` from the time on when two
/// steps are in the log.
struct BadRead {
  int rank = 0;
  int at = 0;
  ExitCode kind = ExitCode::kMissingInput;
};

/// The reads that the bad rank made from then on.
int run_with(const BadRead& bad, const SmallRun& small, const RunConfig& config,
             const std::string& name, int ranks) {
  int reads = 0;
  const auto alter = [&](const io::IoRequest& request, int64_t count) -> int64_t {
    if (request.kind != io::IoKind::kRead || small.num_logged(name) != 2 || ++reads != bad.at)
      return count;
    if (bad.kind == ExitCode::kMissingInput)
      return -EIO;
    request.bytes[40] ^= std::byte{16};
    return count;
  };
  parallel::run_on_threads(ranks, [&](parallel::Communicator& comm) {
    TrainOptions options = quick();
    options.catch_signals = false;
    options.identity = "test";
    if (comm.rank() == bad.rank)
      options.swap.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
        return std::make_unique<testing::FailingIo>(std::move(io), alter);
      };
    train(config, comm, options);
  });
  return reads;
}

// What is in memory is whole: weights and states of the step before are saved, then the run ends.
// At stage 3 the base is gathered: the first read of a step is for embedding rows, the others for
// units.
TEST(OffloadParam, AFailingDeviceSavesWhatIsInMemoryAndEndsTheRun) {
  const SmallRun small;
  small.run(config(small, "reference"));
  const struct {
    int ranks, stage, at;
    ExitCode kind;
  } cases[] = {{1, 1, 20, ExitCode::kMissingInput}, {2, 1, 20, ExitCode::kMissingInput},
               {2, 3, 1, ExitCode::kMissingInput},  {2, 3, 3, ExitCode::kMissingInput},
               {2, 3, 8, ExitCode::kCorruptBlock},  {4, 3, 1, ExitCode::kCorruptBlock},
               {4, 3, 5, ExitCode::kMissingInput},  {4, 3, 9, ExitCode::kCorruptBlock}};
  for (const auto& each : cases) {
    const std::string name = "r" + std::to_string(each.ranks) + "s" + std::to_string(each.stage) +
                             "at" + std::to_string(each.at);
    const auto failing = [&] {
      return config(small, name, {base_on_nvme(small), stage(each.stage)});
    };
    const BadRead bad{each.ranks - 1, each.at, each.kind};
    const Error caught = error_of([&] { run_with(bad, small, failing(), name, each.ranks); });
    EXPECT_EQ(caught.exit_code(), each.kind) << caught.what();
    if (each.ranks > 1)
      EXPECT_HAS(caught.what(), "rank " + std::to_string(each.ranks - 1) + ": ");
    // Below stage 3 rows are read by single blocks of a table.
    EXPECT_HAS(caught.what(), each.stage == 3 ? ", block 0: " : ", block ");
    EXPECT_HAS(caught.what(), each.kind == ExitCode::kMissingInput
                                  ? "Input/output error"
                                  : "expected generation 1 with checksum");
    EXPECT_HAS(caught.what(), "The checkpoint of step 2 is saved.");
    const TrainResult resumed = small.run(failing(), each.ranks, quick());
    EXPECT_EQ(resumed.resumed_from, 2);
    expect_reference(small, name);
  }
}

// The last read of a run is for the evaluation after its last step, which is whole.
TEST(OffloadParam, ADeviceThatFailsInAnEvaluationCostsNoStep) {
  const SmallRun small;
  const std::string steps = "training.max_steps=3";
  small.run(config(small, "reference", {steps}));
  for (const int number : {0, 3}) {
    const std::string name = "eval" + std::to_string(number);
    const auto failing = [&](const std::string& output) {
      return config(small, output, {steps, base_on_nvme(small), stage(number)});
    };
    const int reads = run_with({0, -1}, small, failing(name + "good"), name + "good", 2);
    const Error caught = error_of([&] { run_with({0, reads}, small, failing(name), name, 2); });
    EXPECT_HAS(caught.what(), "The checkpoint of step 3 is saved.");
    EXPECT_FALSE(fs::exists(small.path(name) / "adapter"));
    const TrainResult resumed = small.run(failing(name), 2, quick());
    EXPECT_EQ(resumed.resumed_from, 3);
    EXPECT_TRUE(resumed.has_eval);
    EXPECT_TRUE(small.adapter_bytes(name) == small.adapter_bytes("reference"));
  }
}

TEST(OffloadParam, AWrongBlockEndsTheRunAndIsNeverUsed) {
  const SmallRun small;
  std::atomic<int> reads{0};
  TrainOptions options = quick();
  options.swap.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
    return std::make_unique<testing::FailingIo>(
        std::move(io), [&](const io::IoRequest& request, int64_t count) {
          if (request.kind == io::IoKind::kRead && ++reads == 30)
            request.bytes[40] ^= std::byte{16};
          return count;
        });
  };
  const Error caught =
      error_of([&] { small.run(config(small, "run", {base_on_nvme(small)}), 1, options); });
  EXPECT_EQ(caught.exit_code(), ExitCode::kCorruptBlock) << caught.what();
  EXPECT_HAS(caught.what(), "expected generation 1 with checksum");
  EXPECT_FALSE(fs::exists(small.path("run") / "adapter"));
}

TEST(Offload, SwapFilesThatDoNotFitAreToldBeforeLoading) {
  const SmallRun small;
  const RunConfig both = config(small, "run", {states_on_nvme(small), base_on_nvme(small)});
  const SwapSpace space = free_swap_space(both);
  EXPECT_TRUE(space.is_one_disk);
  EXPECT_GT(space.base, 0);
  EXPECT_LT(space.states, INT64_MAX);
  EXPECT_EQ(free_swap_space(config(small, "run")).base, INT64_MAX);
  RunPlan plan;
  plan.ranks = 2;
  plan.swap = {{3 << 20, 1 << 20}, {3 << 20, 1 << 20}};
  require_swap_space(both, plan, {2, 0, {8 << 20, 8 << 20, true}});
  const Error full = error_of([&] {
    require_swap_space(both, plan, {2, 0, {7 << 20, 7 << 20, true}});
  });
  EXPECT_EQ(full.exit_code(), ExitCode::kCannotWrite);
  EXPECT_HAS(full.what(), "offload_param.nvme_path: ");
  EXPECT_HAS(full.what(),
             "expected 8.0 MiB free for the swap files of 2 ranks of this machine, found 7.0 MiB");
  const Error states = error_of([&] {
    require_swap_space(both, plan, {2, 0, {7 << 20, 1 << 20, false}});
  });
  EXPECT_HAS(states.what(), "offload_optimizer.nvme_path: ");
}

TEST(Offload, AFolderThatCannotServeIsToldBeforeLoading) {
  const SmallRun small;
  const std::string key = "parallel.zero_optimization.offload_optimizer=";
  const Error none = error_of([&] {
    small.run(config(small, "run", {key + "{device: nvme, nvme_path: /no/such/folder}"}));
  });
  EXPECT_EQ(none.exit_code(), ExitCode::kUsage);
  EXPECT_HAS(none.what(), "offload_optimizer.nvme_path: expected a folder, found none");
  EXPECT_FALSE(fs::exists(small.path("run")));
}

}  // namespace
}  // namespace shardtune::trainer
