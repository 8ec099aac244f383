// compute_dtype int8 through whole trainings: same bits everywhere, scales that outlive a resume,
// what is logged, and what a file of other scales gets.
#include "trainer/int8_compute.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::read_text;
using testing::SmallRun;
using Overrides = std::vector<std::string>;

Overrides with(const Overrides& more) {
  Overrides all = {"model.compute_dtype=int8", "training.max_steps=4"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}
std::string stage(int number) {
  return "parallel.zero_optimization={stage: " + std::to_string(number) + "}";
}

TEST(Int8Compute, GivesTheBitsOfOneRankEverywhere) {
  const SmallRun small;
  for (const char* method : {"nf4", "none"}) {
    const std::string base = std::string("quantization={method: ") + method + "}";
    const std::string reference = std::string("reference-") + method;
    small.run(small.config(reference, with({base})));
    for (const int ranks : {2, 3}) {
      for (const char* recompute : {"false", "true"}) {
        const std::string name = reference + std::to_string(ranks) + recompute;
        small.run(
            small.config(name, with({base, stage(ranks), "parallel.threads=2",
                                     std::string("training.gradient_checkpointing=") + recompute})),
            ranks);
        EXPECT_EQ(small.losses(name), small.losses(reference)) << name;
        EXPECT_EQ(small.adapter_bytes(name), small.adapter_bytes(reference)) << name;
      }
    }
  }
}

// int8 changes the loss a little; the same loss would mean that it did not compute so.
TEST(Int8Compute, IsNearTheExactLossButNotIt) {
  const SmallRun small;
  const TrainResult exact = small.run(small.config("exact", {"training.max_steps=4"}));
  // Before the next run: the process keeps on writing into it.
  EXPECT_EQ(read_text(small.path("exact") / "train.log").find("int8:"), std::string::npos);
  const TrainResult int8 = small.run(small.config("int8", with({})));
  EXPECT_NE(int8.final_loss, exact.final_loss);
  EXPECT_NEAR(int8.final_loss, exact.final_loss, 0.01 * exact.final_loss);
  const std::string log = read_text(small.path("int8") / "train.log");
  for (const char* text :
       {"int8: model.layers.0: self_attn.q_proj ", "mlp.down_proj ",
        "int8: relative error of the linears' outputs: mean ", "int8: scales chosen by "})
    EXPECT_NE(log.find(text), std::string::npos) << text << "\n" << log;
}

// The second half begins with the checkpoint's scales, whatever the first samples say by then.
TEST(Int8Compute, ResumesWithTheScalesOfTheCheckpoint) {
  const SmallRun small;
  small.run(small.config("whole", with({})));
  small.run(small.config("parts", with({"training.stop_at_step=2"})), 2);
  const TrainResult rest = small.run(small.config("parts", with({stage(3)})), 3);
  EXPECT_EQ(rest.resumed_from, 2);
  EXPECT_EQ(small.losses("parts"), small.losses("whole"));
  EXPECT_EQ(small.adapter_bytes("parts"), small.adapter_bytes("whole"));
  const std::string log = read_text(small.path("parts") / "train.log");
  EXPECT_NE(log.find("int8: scales of the checkpoint checked on "), std::string::npos) << log;
  EXPECT_EQ(read_text(small.path("parts") / "adapter" / "shardtune.json"),
            read_text(small.path("whole") / "adapter" / "shardtune.json"));
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(Int8Compute, RefusesScalesOfAnotherModel) {
  const SmallRun small;
  const RunConfig config = small.config("run", with({}));
  parallel::run_on_threads(1, [&](parallel::Communicator& comm) {
    Job job(config, comm);
    check_inputs(job);
    agree_on_inputs(job, "test");
    load(job);
    prepare_int8(job, nullptr);
    const std::vector<models::Int8Migration> good = models::int8_migration(*job.model);
    const auto refused =
        [&](const std::function<void(std::vector<models::Int8Migration>&)>& spoil) {
          std::vector<models::Int8Migration> bad = good;
          spoil(bad);
          return message_of([&] { models::set_int8_migration(*job.model, bad, "file.json"); });
        };
    EXPECT_EQ(refused([](auto&) {}), "");
    EXPECT_EQ(refused([](auto& list) { list.pop_back(); }),
              "file.json: int8_migration: linears: expected 14, found 13. Use the file that was "
              "written for this base.");
    EXPECT_EQ(refused([](auto& list) { list[0].exponents += "m"; }),
              "file.json: int8_migration: model.layers.0.self_attn.q_proj: expected 64 letters, "
              "found 65. Use the file that was written for this base.");
    EXPECT_NE(refused([](auto& list) { list[0].exponents[3] = '{'; }).find("letters a to z"),
              std::string::npos);
    EXPECT_NE(refused([](auto& list) {
                list[0].linear = "model.other";
              }).find("self_attn.q_proj: expected its exponents, found none"),
              std::string::npos);
  });
}

TEST(Int8Calibration, TakesTheFirstSamplesInOrderAndAtLeastOne) {
  const auto sample = [](size_t length) {
    data::Sample made;
    made.ids.resize(length);
    made.trained.resize(length);
    return made;
  };
  const data::MicroBatchPlan some =
      calibration_samples({sample(600), sample(400), sample(25), sample(1)});
  EXPECT_EQ(some.samples, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(some.num_tokens, 1000);
  EXPECT_EQ(calibration_samples({sample(3000), sample(1)}).samples, (std::vector<int64_t>{0}));
}

}  // namespace
}  // namespace shardtune::trainer
