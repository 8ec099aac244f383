#include "trainer/limit.h"

#include <gtest/gtest.h>

#include "kernels/gemm_rate.h"
#include "parallel/communicator.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;

struct FirstStep {
  StepFlops flops;
  data::StepPlan plan;
  std::vector<double> lengths;  // of its samples
};

FirstStep first_step(const SmallRun& small, const std::vector<std::string>& overrides = {}) {
  const RunConfig config = small.config("run", overrides);
  const auto comm = parallel::make_single_communicator();
  Job job(config, *comm);
  check_inputs(job);
  agree_on_base(job);
  load(job);
  FirstStep step;
  step.plan = job.plan->step(0);
  step.flops = step_flops(job, step.plan);
  for (const data::MicroBatchPlan& micro_batch : step.plan.micro_batches) {
    for (const int64_t sample : micro_batch.samples)
      step.lengths.push_back(static_cast<double>(job.train_set.samples[sample].ids.size()));
  }
  return step;
}

// Each token attends to itself and those before it in its sample: a product with its key and one
// with its value, 2 operations per element of the heads.
double attention_forward(const FirstStep& step, double width, double layers) {
  double pairs = 0.0;
  for (const double length : step.lengths) {
    for (double token = 1; token <= length; ++token)
      pairs += token;
  }
  return 2 * 2 * pairs * width * layers;
}

TEST(Limit, CountsWhatLoraTrainingCannotDoWithout) {
  const SmallRun small;
  const FirstStep step = first_step(small);
  const auto tokens = static_cast<double>(step.plan.num_tokens);
  const io::Json config = io::read_json_file((small.path("model") / "config.json").string());
  const auto size = [&](const char* key) { return config.find(key)->as_number(); };
  const double hidden = size("hidden_size"), inner = size("intermediate_size");
  const double kv = hidden / size("num_attention_heads") * size("num_key_value_heads");
  const double layers = size("num_hidden_layers");
  const double weights = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner);
  // Rank 16 on every linear: [16, in] and [out, 16].
  const double trained = layers * 16 * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner));
  EXPECT_DOUBLE_EQ(step.flops.linears, 4 * weights * tokens);
  EXPECT_DOUBLE_EQ(step.flops.adapters, 6 * trained * tokens);
  EXPECT_DOUBLE_EQ(step.flops.attention, 3.5 * attention_forward(step, hidden, layers));
  EXPECT_DOUBLE_EQ(step.flops.head, 4 * size("vocab_size") * hidden *
                                        static_cast<double>(step.plan.num_trained_tokens));
}

TEST(Limit, PackedSamplesDoNotSeeEachOther) {
  const SmallRun small;
  const FirstStep step = first_step(
      small, {"data.packing=true", "training.micro_batch_size=1", "training.global_batch_size=1"});
  ASSERT_GT(step.lengths.size(), 1u);
  EXPECT_DOUBLE_EQ(step.flops.attention, 3.5 * attention_forward(step, 64, 2));
}

TEST(Limit, RecomputeRunsEverythingButTheHeadOnceMore) {
  const SmallRun small;
  const StepFlops once = first_step(small).flops;
  const StepFlops twice = first_step(small, {"training.gradient_checkpointing=true"}).flops;
  EXPECT_DOUBLE_EQ(twice.linears, once.linears * 6 / 4);
  EXPECT_DOUBLE_EQ(twice.adapters, once.adapters * 8 / 6);
  EXPECT_DOUBLE_EQ(twice.attention, once.attention * 4.5 / 3.5);
  EXPECT_DOUBLE_EQ(twice.head, once.head);
}

TEST(GemmRate, IsThatOfThisMachine) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const double rate = kernels::measure_gemm_rate(dtype);
    EXPECT_GT(rate, 1e8);   // slower than any machine that runs this
    EXPECT_LT(rate, 1e16);  // faster than any
  }
}

}  // namespace
}  // namespace shardtune::trainer
