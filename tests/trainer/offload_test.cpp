// Training with offload_optimizer and offload_param on NVMe: the bits of a run without, resume from
// one to the other, and what a failing device costs (RELIABILITY R25, R26).
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

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
    // The writes of step 3 fail: step 2 is in the log, and its checkpoint, which is written beside
    // the steps, is waited for (at most 20 s).
    const auto is_in_step3 = [&] {
      for (int i = 0; i < 400 && small.num_logged(name) == 2; ++i) {
        if (fs::exists(small.path(name) / "checkpoint-2"))
          return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
      return false;
    };
    TrainOptions options;
    options.swap.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
      return std::make_unique<testing::FailingIo>(
          std::move(io), [&](const io::IoRequest& request, int64_t count) -> int64_t {
            const bool is_write = request.kind == io::IoKind::kWrite && request.offset > 0;
            return is_write && is_in_step3() ? -error : count;
          });
    };
    const Error caught = error_of([&] { small.run(failing(), 2, options); });
    EXPECT_EQ(caught.exit_code(), ExitCode::kCannotWrite) << caught.what();
    EXPECT_HAS(caught.what(), "exp_avg");
    EXPECT_HAS(caught.what(), std::strerror(error));
    EXPECT_HAS(caught.what(), "The update of step 3 was under way");
    EXPECT_FALSE(fs::exists(small.path(name) / "checkpoint-3"));
    const TrainResult resumed = small.run(failing(), 2);
    EXPECT_EQ(resumed.resumed_from, 2);
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

// What is in memory is whole: weights and states of the step before are saved, then the run ends.
TEST(OffloadParam, AFailingDeviceSavesWhatIsInMemoryAndEndsTheRun) {
  const SmallRun small;
  small.run(config(small, "reference"));
  for (int ranks = 1; ranks <= 2; ++ranks) {
    const std::string name = "fail" + std::to_string(ranks);
    std::atomic<int> reads{0};
    TrainOptions options = quick();
    options.swap.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
      return std::make_unique<testing::FailingIo>(
          std::move(io), [&](const io::IoRequest& request, int64_t count) -> int64_t {
            // In the middle of step 3: its first two lines are in the log of the run.
            return request.kind == io::IoKind::kRead && small.num_logged(name) == 2 && ++reads == 20
                       ? -EIO
                       : count;
          });
    };
    const auto failing = [&] { return config(small, name, {base_on_nvme(small), stage(1)}); };
    const Error caught = error_of([&] { small.run(failing(), ranks, options); });
    EXPECT_EQ(caught.exit_code(), ExitCode::kMissingInput) << caught.what();
    EXPECT_HAS(caught.what(), "block 0");
    EXPECT_HAS(caught.what(), "Input/output error");
    EXPECT_HAS(caught.what(), "The checkpoint of step 2 is saved.");
    const TrainResult resumed = small.run(failing(), ranks, quick());
    EXPECT_EQ(resumed.resumed_from, 2);
    expect_reference(small, name);
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
