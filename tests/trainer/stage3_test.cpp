// ZeRO stage 3 through whole trainings: every frozen format and compute dtype with the bits of one
// rank, checkpoints between stages, and the proof that no rank holds the base whole.
#include <gtest/gtest.h>

#include <mutex>

#include "core/error.h"
#include "models/model.h"
#include "tests/trainer/small_run.h"
#include "trainer/job.h"
#include "trainer/step.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
using testing::TinyShape;

std::string stage(int number) {
  return "parallel.zero_optimization={stage: " + std::to_string(number) + "}";
}

using Overrides = std::vector<std::string>;

Overrides with(Overrides overrides, const Overrides& more) {
  overrides.insert(overrides.end(), more.begin(), more.end());
  return overrides;
}

// Evaluation runs during the training too: 4 micro-batches or fewer on up to 4 ranks.
class Stage3Formats : public ::testing::TestWithParam<Overrides> {};

TEST_P(Stage3Formats, GiveTheBitsOfOneRank) {
  const SmallRun small;
  const Overrides common = with(GetParam(), {"training.max_steps=3", "eval.eval_steps=1"});
  small.run(small.config("reference", common));
  for (const int ranks : {2, 4}) {
    for (const char* recompute : {"false", "true"}) {
      const std::string name = "r" + std::to_string(ranks) + recompute;
      small.run(small.config(
                    name, with(common, {stage(3), std::string("training.gradient_checkpointing=") +
                                                      recompute})),
                ranks);
      EXPECT_EQ(small.losses(name), small.losses("reference")) << name;
      EXPECT_EQ(small.adapter_bytes(name), small.adapter_bytes("reference")) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Stage3Formats,
    ::testing::Values(Overrides{"quantization={method: none}"},
                      Overrides{"quantization={method: none}", "model.compute_dtype=bfloat16"},
                      Overrides{"quantization={method: int8}"},
                      Overrides{"quantization={method: nf4, double_quant: false}"},
                      Overrides{"model.compute_dtype=bfloat16"},
                      Overrides{"data.packing=true", "training.micro_batch_size=1",
                                "training.global_batch_size=5"},
                      Overrides{"adapter.target_modules=[q_proj, v_proj]"}));

TEST(Stage3, CheckpointsMoveBetweenStagesAndNumbersOfRanks) {
  const SmallRun small;
  const Overrides common = {"training.max_steps=9", "checkpoint.save_steps=3"};
  small.run(small.config("whole", common));
  small.run(small.config("parts", with(common, {"training.stop_at_step=3", stage(2)})), 2);
  small.run(small.config("parts", with(common, {"training.stop_at_step=6", stage(3)})), 3);
  const TrainResult rest = small.run(small.config("parts", with(common, {stage(2)})), 4);
  EXPECT_EQ(rest.resumed_from, 6);
  EXPECT_EQ(small.losses("parts"), small.losses("whole"));
  EXPECT_EQ(small.adapter_bytes("parts"), small.adapter_bytes("whole"));
  for (const char* file : {"adapter.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(testing::read_text(small.path("parts") / "checkpoint-9" / file),
              testing::read_text(small.path("whole") / "checkpoint-9" / file))
        << file;
  }
}

/// What one rank of a run held after loading and after a step.
struct Held {
  parallel::StoreMemory loaded;
  parallel::StoreMemory stepped;
};

std::vector<Held> run_and_measure(const RunConfig& config, int ranks) {
  std::vector<Held> all(static_cast<size_t>(ranks));
  parallel::run_on_threads(ranks, [&](parallel::Communicator& comm) {
    Job job(config, comm);
    check_inputs(job);
    agree_on_inputs(job, "test");
    load(job);
    Held& held = all[static_cast<size_t>(comm.rank())];
    held.loaded = job.store->memory();
    train_step(job, 0);
    held.stepped = job.store->memory();
  });
  return all;
}

TEST(Stage3, NoRankHoldsTheBaseWhole) {
  constexpr int64_t kUnits = 27;
  SmallRun small;
  TinyShape shape;
  shape.layers = 24;  // three times the units that are gathered ahead
  testing::make_tiny_model(small.path("model"), shape);
  for (const Overrides& format :
       {Overrides{"adapter.lora_rank=2"}, Overrides{"quantization={method: none}"}}) {
    const int64_t whole = run_and_measure(small.config("whole", format), 1)[0].loaded.base_bytes;
    int64_t sum = 0;
    for (const Held& held : run_and_measure(small.config("run", with(format, {stage(3)})), 4)) {
      sum += held.loaded.base_bytes;
      EXPECT_EQ(held.stepped.base_bytes, held.loaded.base_bytes);
      // Units are a table, the layers, the norm and head; above the even part at most a row of the
      // table and 64 bytes of a norm.
      EXPECT_LE(held.stepped.base_bytes, whole / 4 + kUnits * (256 + 64));
      // Shards and everything ever gathered at once.
      EXPECT_LT(held.stepped.base_bytes + held.stepped.unit_bytes, whole);
    }
    EXPECT_GE(sum, whole);
    EXPECT_LE(sum, whole + kUnits * 30 * 64);  // gaps behind the 30 components of a layer at most
  }
}

// What all ranks of the process hold together while the base is loaded, from the first tensor to
// the last: at stage 3 one base, at stage 2 one each.
TEST(Stage3, LoadingTakesOneBaseForAllRanks) {
  SmallRun small;
  TinyShape shape;
  shape.layers = 10;
  testing::make_tiny_model(small.path("model"), shape);
  const auto source = models::open_model_source(small.path("model").string());
  const auto peak_of = [&](parallel::ZeroStage zero_stage) {
    std::mutex mutex;
    int64_t peak = 0;
    const int64_t before = BufferPool::process().bytes_in_use();
    parallel::run_on_threads(4, [&](parallel::Communicator& comm) {
      parallel::ShardedParameterStore store(comm, zero_stage);
      models::LoadOptions options;
      options.progress = [&](int64_t, int64_t) {
        const std::lock_guard lock(mutex);
        peak = std::max(peak, BufferPool::process().bytes_in_use() - before);
      };
      const auto model = models::load_model(*source, store, options);
      comm.barrier();
    });
    return peak;
  };
  const int64_t stage2 = peak_of(parallel::ZeroStage::k2);
  const int64_t stage3 = peak_of(parallel::ZeroStage::k3);
  EXPECT_GT(stage3, 0);
  // The pool rounds a buffer up by less than an eighth.
  EXPECT_LE(stage3, (stage2 / 4 + 4 * 13 * 256) / 8 * 9);
}

}  // namespace
}  // namespace shardtune::trainer
