// Training on two hosts of their own networks (tests/support/two_hosts.h): the bits of one rank,
// bytes counted on the wire, and a network that fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "io/json.h"
#include "tests/launch/program.h"
#include "tests/support/two_hosts.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using testing::TwoHosts;
using testing::write_text;

class Hosts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!hosts_.problem().empty())
      GTEST_SKIP() << "no two hosts on this machine: " << hosts_.problem();
  }

  Outcome train(int ranks_of_host, const std::string& output, const std::string& options) const {
    return folder_.shell(
        "SHARDTUNE_TRANSPORT=shm " + hosts_.mpirun(ranks_of_host, "-x SHARDTUNE_TRANSPORT") +
        "$st train run.yaml --set checkpoint.output_dir=" + output + " " + options);
  }
  std::string adapter(const std::string& output) const {
    return read_text(folder_.path(output) / "adapter/adapter_model.safetensors");
  }

  TwoHosts hosts_;
  ProgramFolder folder_;
};

TEST_F(Hosts, EveryStageGivesTheBitsOfOneRank) {
  const std::string steps = " --set training.global_batch_size=5";
  ASSERT_EQ(folder_.run("train run.yaml --set checkpoint.output_dir=one" + steps).code, 0);
  for (const int ranks_of_host : {1, 2}) {
    for (const std::string stage : {"0", "1", "2", "3"}) {
      const std::string output = "run-" + stage + "-" + std::to_string(ranks_of_host);
      const Outcome outcome =
          train(ranks_of_host, output, "--set parallel.zero_optimization.stage=" + stage + steps);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      EXPECT_EQ(adapter(output), adapter("one")) << output;
    }
  }
}

// What crosses the wire in a step is what `plan` says, each gathered byte once although two ranks
// of each host want it. Two runs of different length leave start and end out of the difference.
TEST_F(Hosts, SendEachGatheredByteOnceToEachHost) {
  testing::make_tiny_model(folder_.path("model"), {256, 1024, 3, 4, 2, 260});
  for (const std::string stage : {"1", "2", "3"}) {
    const std::string options =
        "--set training.global_batch_size=4 --set parallel.zero_optimization.stage=" + stage;
    const Outcome planned = folder_.run("plan run.yaml --ranks 4 --hosts 2 --json " + options);
    ASSERT_EQ(planned.code, 0) << planned.err;
    const io::Json document = io::parse_json(planned.out, "plan --json");
    const int64_t expected = document.find("host_sent_bytes_per_step")->as_integer();
    std::array<int64_t, 2> sent{};
    constexpr std::array<int, 2> kSteps{2, 12};
    for (size_t i = 0; i < 2; ++i) {
      const int64_t before = hosts_.sent_bytes();
      const Outcome outcome =
          train(2, "steps-" + stage + std::to_string(kSteps[i]),
                "--set training.max_steps=" + std::to_string(kSteps[i]) + " " + options);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      sent[i] = hosts_.sent_bytes() - before;
    }
    const int64_t measured = (sent[1] - sent[0]) / (kSteps[1] - kSteps[0]);
    // Below: rows of a table are planned for the longest micro-batch. Above: headers of packets (66
    // of 1,514 bytes), of messages and calls, and some sent again.
    EXPECT_GT(measured, expected * 97 / 100) << "stage " << stage;
    EXPECT_LT(measured, expected * 110 / 100) << "stage " << stage;
  }
}

// R28: the wire breaks while the ranks train. All of them leave, each naming a rank of the other
// host, within twice the heartbeat and what two messages and leaving take; nothing is saved.
TEST_F(Hosts, ANetworkThatFailsEndsTheRunOnBoth) {
  const fs::path errors = folder_.path("errors");
  fs::create_directory(errors);
  // Each rank's own messages, since those of the second host do not arrive any more.
  write_text(folder_.path("start.sh"),
             "exec " SHARDTUNE_PROGRAM " \"$@\" 2>errors/$OMPI_COMM_WORLD_RANK\n");
  write_text(folder_.path("hosts"), hosts_.hostfile(2));
  Outcome outcome;
  std::thread run([&] {
    outcome = folder_.shell("export SHARDTUNE_BINARY=/bin/bash && " + hosts_.agent_variable() +
                            hosts_.on(0) +
                            SHARDTUNE_SOURCE_DIR
                            "/launch/run -n 4 --hostfile hosts start.sh train run.yaml "
                            "--set training.max_steps=100000 --set training.global_batch_size=4 "
                            "--set parallel.heartbeat_seconds=3");
  });
  const fs::path metrics = folder_.path("run/metrics.jsonl");
  for (int i = 0; i < 3000 && std::ranges::count(read_text(metrics), '\n') < 3; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(hosts_.count_processes(SHARDTUNE_PROGRAM), 4);
  EXPECT_TRUE(hosts_.cut());
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  while (hosts_.count_processes(SHARDTUNE_PROGRAM) > 0 && seconds() < 30.0)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_LT(seconds(), 6.0 + 10.0);  // twice the heartbeat, and a loaded machine
  run.join();
  EXPECT_EQ(outcome.code, 70) << outcome.err;
  for (int rank = 0; rank < 4; ++rank) {
    const std::string text = read_text(errors / std::to_string(rank));
    // The first that rank 0 misses, of both; and rank 0 itself.
    const std::string lost = rank < 2 ? " on host second-host was lost (no heartbeat for "
                                      : "rank 0 on host first-host was lost (no heartbeat for ";
    const size_t at = text.find("[rank " + std::to_string(rank) + "/4] ");
    ASSERT_NE(at, std::string::npos) << rank << ": " << text;
    const std::string line = text.substr(at, text.find('\n', at) - at);
    EXPECT_NE(line.find(lost), std::string::npos) << line;
    // The wire was cut inside a step or between two.
    EXPECT_TRUE(line.find("at step ") != std::string::npos ||
                line.find("after step ") != std::string::npos)
        << line;
    EXPECT_NE(line.find("(#"), std::string::npos) << line;
  }
  for (const auto& entry : fs::directory_iterator(folder_.path("run")))
    EXPECT_FALSE(entry.path().filename().string().starts_with("checkpoint-")) << entry.path();
}

}  // namespace
}  // namespace shardtune::launch
