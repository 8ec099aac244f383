#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "io/safetensors.h"
#include "tests/trainer/small_run.h"
#include "tests/trainer/whole_checkpoint.h"
#include "trainer/checkpoint.h"

namespace shardtune::trainer {
namespace {

using testing::read_checkpoint;
using testing::read_text;
using testing::SmallRun;
using testing::write_text;

std::string error_of(const std::function<void()>& body, ExitCode code) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an error";
  return "";
}

TrainOptions resume_from(const fs::path& path) {
  TrainOptions options;
  options.resume = ResumeMode::kPath;
  options.resume_path = path.string();
  return options;
}

TEST(Train, LearnsAndWritesTheRunDirectory) {
  const SmallRun small;
  const TrainResult result =
      small.run(small.config("run", {"training.max_steps=30", "logging.logging_steps=3"}));
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  EXPECT_EQ(result.steps, 30);
  EXPECT_TRUE(result.has_eval);
  EXPECT_GT(result.tokens_per_second, 0.0);
  for (const char* name : {"resolved_config.yaml", "train.log", "metrics.jsonl", "checkpoint-30",
                           "adapter/adapter_config.json", "adapter/shardtune.json", "report.html"})
    EXPECT_TRUE(fs::exists(small.path("run") / name)) << name;

  std::istringstream lines(read_text(small.path("run") / "metrics.jsonl"));
  std::vector<io::Json> metrics;
  for (std::string line; std::getline(lines, line);)
    metrics.push_back(io::parse_json(line, "metrics.jsonl"));
  ASSERT_EQ(metrics.size(), 10u);
  for (const char* key :
       {"step", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "step_time_ms",
        "prefetch_cpu_ms", "peak_rss_bytes", "limit_fraction", "time_ms"})
    EXPECT_NE(metrics[0].find(key), nullptr) << key;
  EXPECT_EQ(metrics[0].find("step")->as_integer(), 3);
  EXPECT_LT(metrics.back().find("loss")->as_number(), 0.7 * metrics[0].find("loss")->as_number());
  EXPECT_EQ(metrics.back().find("eval_loss")->as_number(),
            io::parse_json(metrics.back().find("eval_loss")->dump(), "x").as_number());
}

TEST(Train, EvalSplitIsTheSameOnRanksAndAfterAResume) {
  const SmallRun small;
  const std::vector<std::string> split = {"data.eval=[]", "data.eval_split=5", "eval.eval_steps=2",
                                          "checkpoint.save_steps=2"};
  const auto with = [&](const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> overrides = split;
    overrides.insert(overrides.end(), more.begin(), more.end());
    return small.config(name, overrides);
  };
  const TrainResult one = small.run(with("one", {}));
  EXPECT_TRUE(one.has_eval);
  small.run(with("two", {"parallel.zero_optimization={stage: 3}"}), 2);
  EXPECT_EQ(small.losses("two"), small.losses("one"));
  small.run(with("stopped", {"training.stop_at_step=2"}));
  small.run(with("stopped", {}), 2);
  EXPECT_EQ(small.losses("stopped"), small.losses("one"));
  EXPECT_EQ(small.adapter_bytes("stopped"), small.adapter_bytes("one"));
  small.run(small.config("whole", {"data.eval=[]"}));
  EXPECT_NE(small.adapter_bytes("whole"), small.adapter_bytes("one"));
}

double sum_of(const io::Json& times) {
  double sum = 0.0;
  for (const auto& [name, value] : times.as_object())
    sum += value.as_number();
  return sum;
}

TEST(Train, ToldTimesAddUpToTheStepAndTheLimitIsAFraction) {
  const SmallRun small;
  // Nine samples in micro-batches of two: of two ranks the second has less to do.
  small.run(small.config("two", {"parallel.zero_optimization={stage: 3}"}), 2);
  std::istringstream lines(read_text(small.path("two") / "metrics.jsonl"));
  int num_lines = 0;
  for (std::string text; std::getline(lines, text); ++num_lines) {
    const io::Json line = io::parse_json(text, "metrics.jsonl");
    const io::Json& times = *line.find("time_ms");
    EXPECT_NEAR(sum_of(times), line.find("step_time_ms")->as_number(), 0.01) << text;
    for (const char* name : {"linears", "attention", "head", "adapters", "other", "optimizer",
                             "communication", "units", "data", "idle"})
      EXPECT_GT(times.find(name)->as_number(), 0.0) << name << text;
    EXPECT_EQ(line.find("rank_time_ms")->find("idle")->as_array().size(), 2u);
    EXPECT_GT(line.find("limit_fraction")->as_number(), 0.0);
    EXPECT_LT(line.find("limit_fraction")->as_number(), 1.0);
  }
  EXPECT_EQ(num_lines, 4);
}

// The promise of the project on ranks that are threads; matrix_test.cpp has the whole table.
TEST(Train, TheSameBitsOnAnyRanksStagesThreadsAndWithRecompute) {
  const SmallRun small;
  small.run(small.config("reference", {"parallel.threads=1"}));
  const auto losses = small.losses("reference");
  const std::string adapter = small.adapter_bytes("reference");
  ASSERT_EQ(losses.size(), 4u);
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      const std::string name = "r" + std::to_string(ranks) + "s" + std::to_string(stage);
      const std::string threads = ranks == 3 ? "2" : "1";
      const std::string recompute = (ranks + stage) % 2 == 0 ? "true" : "false";
      // Not set_num_threads(): OpenMP counts for each thread, and ranks are new ones.
      small.run(
          small.config(name, {"parallel.zero_optimization={stage: " + std::to_string(stage) + "}",
                              "parallel.threads=" + threads,
                              "training.gradient_checkpointing=" + recompute}),
          ranks);
      EXPECT_EQ(small.losses(name), losses) << name;
      EXPECT_EQ(small.adapter_bytes(name), adapter) << name;
    }
  }
}

TEST(Train, PackedRunsHaveTheSameBitsToo) {
  const SmallRun small;
  const std::vector<std::string> packed = {"data.packing=true", "training.micro_batch_size=1",
                                           "training.global_batch_size=5"};
  small.run(small.config("one", packed));
  small.run(small.config("three", packed), 3);
  EXPECT_EQ(small.losses("one"), small.losses("three"));
  EXPECT_EQ(small.adapter_bytes("one"), small.adapter_bytes("three"));
}

// A test of the test above: another seed must give other bits.
TEST(Train, AnotherSeedGivesOtherBits) {
  const SmallRun small;
  small.run(small.config("a"));
  small.run(small.config("b", {"training.seed=43"}));
  EXPECT_NE(small.losses("a"), small.losses("b"));
  EXPECT_NE(small.adapter_bytes("a"), small.adapter_bytes("b"));
}

TEST(Resume, TenAndTenStepsAreTwenty) {
  const SmallRun small;
  small.run(small.config("whole", {"training.max_steps=20", "eval.eval_steps=10"}));
  const std::vector<std::string> common = {"training.max_steps=20", "eval.eval_steps=10",
                                           "checkpoint.save_steps=4"};
  auto first = common;
  first.push_back("training.stop_at_step=10");
  const TrainResult half = small.run(small.config("parts", first), 1);
  EXPECT_FALSE(half.finished);
  EXPECT_EQ(half.steps, 10);
  EXPECT_EQ(half.adapter_folder, "");
  auto second = common;
  second.push_back("parallel.zero_optimization={stage: 2}");
  const TrainResult rest = small.run(small.config("parts", second), 3);
  EXPECT_EQ(rest.resumed_from, 10);
  EXPECT_TRUE(rest.finished);
  EXPECT_EQ(small.losses("parts"), small.losses("whole"));
  EXPECT_EQ(small.adapter_bytes("parts"), small.adapter_bytes("whole"));
}

TEST(Resume, FromAShardedRunOntoOneRankAndOverADamagedCheckpoint) {
  const SmallRun small;
  small.run(small.config("whole", {"training.max_steps=9"}));
  const std::vector<std::string> common = {"training.max_steps=9", "checkpoint.save_steps=3"};
  auto first = common;
  first.insert(first.end(), {"training.stop_at_step=6", "parallel.zero_optimization={stage: 1}"});
  small.run(small.config("parts", first), 4);
  const fs::path newest = small.path("parts") / "checkpoint-6" / "optimizer.safetensors";
  std::string bytes = read_text(newest);
  bytes[bytes.size() / 2] ^= 4;
  write_text(newest, bytes);

  const std::string strict = error_of(
      [&] { small.run(small.config("parts", common), 1, resume_from(newest.parent_path())); },
      ExitCode::kDamagedInput);
  EXPECT_NE(strict.find("optimizer.safetensors"), std::string::npos) << strict;
  const TrainResult rest = small.run(small.config("parts", common));
  EXPECT_EQ(rest.resumed_from, 3);
  EXPECT_EQ(small.losses("parts"), small.losses("whole"));
  EXPECT_EQ(small.adapter_bytes("parts"), small.adapter_bytes("whole"));
  read_checkpoint(newest.parent_path());  // saved again on the way
}

TEST(Resume, ADifferentKeyIsNamed) {
  const SmallRun small;
  small.run(small.config("run", {"training.stop_at_step=2"}));
  const std::string text = error_of(
      [&] {
        small.run(small.config("run", {"training.learning_rate=1e-3", "training.seed=1"}));
      },
      ExitCode::kUsage);
  EXPECT_NE(text.find("training.learning_rate: expected 0.01"), std::string::npos) << text;
  EXPECT_NE(text.find("found 0.001"), std::string::npos) << text;
  EXPECT_NE(text.find("training.seed"), std::string::npos) << text;
  // What does not matter may change.
  const TrainResult rest =
      small.run(small.config("run", {"logging.logging_steps=2", "checkpoint.save_steps=1"}), 2);
  EXPECT_EQ(rest.resumed_from, 2);
}

TEST(Resume, AnotherBaseIsRefused) {
  const SmallRun small;
  small.run(small.config("run", {"training.stop_at_step=2"}));
  const fs::path weights = small.path("model") / "model.safetensors";
  std::string bytes = read_text(weights);
  bytes[bytes.size() - 3] ^= 1;
  write_text(weights, bytes);
  const std::string text = error_of([&] { small.run(small.config("run")); }, ExitCode::kUsage);
  EXPECT_NE(text.find("model.model_name_or_path"), std::string::npos) << text;
}

TEST(Resume, AFinishedRunIsNotRunAgain) {
  const SmallRun small;
  small.run(small.config("run"));
  const auto losses = small.losses("run");
  const std::string adapter = small.adapter_bytes("run");
  const TrainResult again = small.run(small.config("run"));
  EXPECT_EQ(again.resumed_from, 4);
  EXPECT_TRUE(again.finished);
  EXPECT_TRUE(again.has_eval);
  EXPECT_EQ(small.losses("run"), losses);
  EXPECT_EQ(small.adapter_bytes("run"), adapter);
}

TEST(Resume, NeverStartsOverAndKeepsTheEarlierRun) {
  const SmallRun small;
  small.run(small.config("run"));
  TrainOptions options;
  options.resume = ResumeMode::kNever;
  const TrainResult again = small.run(small.config("run", {"training.seed=1"}), 1, options);
  EXPECT_EQ(again.resumed_from, -1);
  read_checkpoint(small.path("run") / "previous-1" / "checkpoint-4");
}

// Files above the limit cannot be written, as on a full disk: training goes on, the adapter (below
// the limit) is there at the end, and the code says that a save failed.
TEST(Train, GoesOnWhenACheckpointCannotBeWritten) {
  const SmallRun small;
  small.run(small.config("whole"));
  const auto adapter_size =
      fs::file_size(small.path("whole") / "adapter/adapter_model.safetensors");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  rlimit limit = old;
  limit.rlim_cur = adapter_size + adapter_size / 2;  // the optimizer states take twice as much
  setrlimit(RLIMIT_FSIZE, &limit);
  const TrainResult result = small.run(small.config("full", {"checkpoint.save_steps=2"}), 2);
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_EQ(result.exit_code, ExitCode::kCannotWrite);
  EXPECT_TRUE(result.finished);
  EXPECT_TRUE(list_checkpoints(small.path("full")).empty());
  EXPECT_FALSE(fs::exists(small.path("full") / "checkpoint-2.partial"));
  EXPECT_EQ(small.adapter_bytes("full"), small.adapter_bytes("whole"));
}

TEST(Train, NonFiniteLossStopsBeforeTheUpdateOnAllRanks) {
  const SmallRun small;
  // A norm's weight near the end of fp32: finite, as loading demands, but products overflow.
  const fs::path weights = small.path("model") / "model.safetensors";
  std::string bytes = read_text(weights);
  {
    const auto source = io::open_safetensors(weights);
    const auto norm = source->bytes(*source->find("model.norm.weight"));
    const size_t begin = bytes.find({reinterpret_cast<const char*>(norm.data()), norm.size()});
    ASSERT_NE(begin, std::string::npos);
    const float huge = 3e38f;
    for (size_t i = 0; i < norm.size(); i += sizeof huge)
      std::memcpy(bytes.data() + begin + i, &huge, sizeof huge);
  }
  write_text(weights, bytes);

  for (const char* stage : {"0", "3"}) {
    const std::string text = error_of(
        [&] {
          small.run(small.config(
                        "run", {std::string("parallel.zero_optimization={stage: ") + stage + "}"}),
                    2);
        },
        ExitCode::kNonFinite);
    EXPECT_NE(text.find("step "), std::string::npos) << text;
    EXPECT_NE(text.find("train.jsonl:"), std::string::npos) << text;
    EXPECT_FALSE(fs::exists(small.path("run") / "adapter"));
    EXPECT_TRUE(fs::exists(small.path("run") / "report.html"));
  }
}

TEST(Train, InputErrorsLeaveNothingBehind) {
  const SmallRun small;
  error_of([&] { small.run(small.config("run", {"model.model_name_or_path=/no/model"})); },
           ExitCode::kMissingInput);
  error_of([&] { small.run(small.config("run", {"data.train=[{path: /no/file.jsonl}]"})); },
           ExitCode::kMissingInput);
  const std::string context = error_of(
      [&] { small.run(small.config("run", {"data.max_length=100000"})); }, ExitCode::kUsage);
  EXPECT_NE(context.find("512"), std::string::npos) << context;
  EXPECT_FALSE(fs::exists(small.path("run")));
}

TEST(Train, RanksOfDifferentConfigurationAreToldWhichKey) {
  const SmallRun small;
  const RunConfig a = small.config("run");
  const RunConfig b = small.config("run", {"training.learning_rate=1e-4"});
  const std::string text = error_of(
      [&] {
        parallel::run_on_threads(2, [&](parallel::Communicator& comm) {
          TrainOptions options;
          options.catch_signals = false;
          train(comm.rank() == 0 ? a : b, comm, options);
        });
      },
      ExitCode::kUsage);
  EXPECT_NE(text.find("training.learning_rate"), std::string::npos) << text;
}

TEST(Train, ADryRunWritesNothing) {
  const SmallRun small;
  TrainOptions options;
  options.dry_run = true;
  const TrainResult result = small.run(small.config("run"), 1, options);
  EXPECT_EQ(result.total_steps, 4);
  EXPECT_FALSE(fs::exists(small.path("run")));
}

// R29: a rank of another build is told from ours before anything is loaded.
TEST(Train, RanksOfDifferentBuildsAreRefused) {
  const SmallRun small;
  const RunConfig config = small.config("run");
  const std::string text = error_of(
      [&] {
        parallel::run_on_threads(3, [&](parallel::Communicator& comm) {
          TrainOptions options;
          options.catch_signals = false;
          options.identity = comm.rank() == 2 ? "version 2" : "version 1";
          train(config, comm, options);
        });
      },
      ExitCode::kUsage);
  EXPECT_NE(text.find("program version"), std::string::npos) << text;
  EXPECT_NE(text.find("'version 1' on rank 0 and 'version 2' on rank 2"), std::string::npos)
      << text;
  EXPECT_FALSE(fs::exists(small.path("run")));
}

}  // namespace
}  // namespace shardtune::trainer
