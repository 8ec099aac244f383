// Whole trainings with one frozen base per host: the bits of a run where every rank has its own.
#include <gtest/gtest.h>

#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::read_text;
using testing::SmallRun;
using Overrides = std::vector<std::string>;

constexpr const char* kShare = "parallel.share_base_per_host=true";

Overrides with(Overrides overrides, const Overrides& more) {
  overrides.insert(overrides.end(), more.begin(), more.end());
  return overrides;
}

std::string stage(int number) {
  return "parallel.zero_optimization.stage=" + std::to_string(number);
}

/// Runs on ranks that say they are spread over `hosts`.
void run(const RunConfig& config, int ranks, int hosts) {
  TrainOptions options;
  options.catch_signals = false;
  options.identity = "test";
  parallel::run_on_threads(
      ranks, [&](parallel::Communicator& comm) { train(config, comm, options); },
      parallel::ThreadTransport::kBuffers, hosts);
}

void expect_reference(const SmallRun& small, const std::string& name) {
  EXPECT_EQ(small.losses(name), small.losses("reference")) << name;
  EXPECT_TRUE(small.adapter_bytes(name) == small.adapter_bytes("reference")) << name;
}

class SharedBaseFormats : public ::testing::TestWithParam<Overrides> {};

TEST_P(SharedBaseFormats, GiveTheBitsOfBasesOfTheirOwn) {
  const SmallRun small;
  const Overrides common =
      with(GetParam(), {"training.max_steps=3", "eval.eval_steps=1", "parallel.threads=1"});
  small.run(small.config("reference", common));
  const struct {
    int ranks, hosts, stage;
  } cases[] = {{1, 1, 0}, {1, 1, 2}, {2, 1, 0}, {2, 1, 1}, {2, 1, 2}, {4, 1, 0},
               {4, 1, 2}, {4, 2, 0}, {4, 2, 1}, {4, 2, 2}, {2, 2, 2}};
  for (const auto& each : cases) {
    const std::string name = "r" + std::to_string(each.ranks) + "h" + std::to_string(each.hosts) +
                             "s" + std::to_string(each.stage);
    run(small.config(name, with(common, {kShare, stage(each.stage)})), each.ranks, each.hosts);
    expect_reference(small, name);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SharedBaseFormats,
                         ::testing::Values(Overrides{"quantization={method: none}",
                                                     "model.compute_dtype=bfloat16"},
                                           Overrides{"quantization={method: int8}"}, Overrides{}));

TEST(SharedBase, WorksWithRecomputeOffloadedStatesAndResume) {
  const SmallRun small;
  small.run(small.config("reference"));
  const std::string states =
      "parallel.zero_optimization.offload_optimizer={device: nvme, "
      "nvme_path: \"" +
      small.path("").string() + "\"}";
  const std::string recompute = "training.gradient_checkpointing=true";
  run(small.config("run", {kShare, stage(2), states, recompute, "training.stop_at_step=2"}), 2, 1);
  EXPECT_NE(read_text(small.path("run") / "train.log").find("share_base_per_host: each host"),
            std::string::npos);
  // On other ranks and hosts, shared or not.
  run(small.config("run", {kShare, recompute, "training.stop_at_step=3"}), 3, 2);
  run(small.config("run", {stage(3), recompute}), 2, 1);
  expect_reference(small, "run");
}

}  // namespace
}  // namespace shardtune::trainer
