// The program under mpirun: one message, the code of the cause, and ranks that disagree.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using testing::write_text;

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

class Ranks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (folder_.shell("command -v mpirun").code != 0)
      GTEST_SKIP() << "mpirun is not there";
  }
  Outcome on_two(const std::string& arguments) const {
    return folder_.shell("SHARDTUNE_BINARY=$st " + std::string(SHARDTUNE_SOURCE_DIR) +
                         "/launch/run -n 2 " + arguments);
  }
  ProgramFolder folder_;
};

TEST_F(Ranks, TwoRanksTrainTheSameAdapterAsOne) {
  ASSERT_EQ(folder_.run("train run.yaml --set checkpoint.output_dir=one").code, 0);
  for (const std::string stage : {"2", "3"}) {
    const Outcome outcome = on_two("train run.yaml --set checkpoint.output_dir=stage" + stage +
                                   " --set parallel.zero_optimization.stage=" + stage);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(read_text(folder_.path("one/adapter/adapter_model.safetensors")),
              read_text(folder_.path("stage" + stage + "/adapter/adapter_model.safetensors")));
  }
  const Outcome outcome = on_two(
      "train run.yaml --set checkpoint.output_dir=shared --set parallel.share_base_per_host=true");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(read_text(folder_.path("one/adapter/adapter_model.safetensors")),
            read_text(folder_.path("shared/adapter/adapter_model.safetensors")));
}

TEST_F(Ranks, AnErrorOfAllRanksIsToldOnceWithItsCode) {
  write_text(folder_.path("train.jsonl"), "{\n");
  const Outcome data = on_two("train run.yaml");
  EXPECT_EQ(data.code, 65) << data.err;
  EXPECT_EQ(count_of(data.err, "shardtune: error:"), 1u) << data.err;
  EXPECT_EQ(count_of(data.err, "[rank 0/2]"), 1u) << data.err;
  const Outcome config = on_two("train run.yaml --set training.nothing=1");
  EXPECT_EQ(config.code, 64) << config.err;
  EXPECT_EQ(count_of(config.err, "shardtune: error:"), 1u) << config.err;
}

TEST_F(Ranks, DifferentConfigurationsAreRefused) {
  write_text(folder_.path("start.sh"),
             "exec " SHARDTUNE_PROGRAM
             " train run.yaml --set training.seed=$((40 + OMPI_COMM_WORLD_RANK))\n");
  const Outcome outcome =
      folder_.shell("SHARDTUNE_BINARY=/bin/bash " + std::string(SHARDTUNE_SOURCE_DIR) +
                    "/launch/run -n 2 start.sh");
  EXPECT_EQ(outcome.code, 64) << outcome.err;
  EXPECT_NE(outcome.err.find("rank"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_.path("run/adapter")));
}

TEST_F(Ranks, OtherVerbsRunInOneProcess) {
  const Outcome outcome = on_two("version");
  EXPECT_EQ(outcome.code, 64) << outcome.err;
  EXPECT_NE(outcome.err.find("without mpirun"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace shardtune::launch
