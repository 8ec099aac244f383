// Logits of the llama family against transformers on small random models, whole tensors, and the
// head against its plain form.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "models/head.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::models {
namespace {

using testing::golden_llama;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

TEST(PaddedTokens, AreFewDistinctCounts) {
  EXPECT_EQ(padded_tokens(1), 8);
  EXPECT_EQ(padded_tokens(16), 16);
  EXPECT_EQ(padded_tokens(57), 64);
  EXPECT_EQ(padded_tokens(65), 128);
  EXPECT_EQ(padded_tokens(512), 512);
}

float largest(const std::vector<float>& values) {
  float result = 0.0f;
  for (const float value : values)
    result = std::max(result, std::abs(value));
  return result;
}

class LlamaGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(LlamaGolden, LogitsAndLossEqualTransformers) {
  SmallModel small(GetParam());
  const auto expected = io::open_safetensors(golden_llama(GetParam()) + "/expected.safetensors");
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<int32_t>> labels;
  for (const char* i : {"0", "1"}) {
    ids.push_back(read_int32(*expected, std::string("input_ids_") + i));
    labels.push_back(read_int32(*expected, std::string("labels_") + i));
  }
  // Both sequences in one flat batch: attention must keep them apart.
  const TokenBatch batch = make_batch(ids, labels);
  Tape tape(small.store, autograd::Recording::kOff);
  const Variable hidden = small.model->forward(tape, small.forward_options(batch));
  const Tensor logits = head_logits(small.model->head(), hidden.value());
  const int64_t vocab = small.model->config().vocab_size;
  int64_t row = 0;
  for (size_t s = 0; s < ids.size(); ++s) {
    const auto want = read_tensor(*expected, "logits_" + std::to_string(s));
    // 2 layers of 7 products of up to 64 terms and a softmax each, then the head.
    const double bound = tolerance::network(64, 2 * 9 + 2) * largest(want);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(logits.data<float>()[row * vocab + static_cast<int64_t>(i)], want[i], bound);
    row += static_cast<int64_t>(ids[s].size());
  }
  const auto objective = objectives::make_next_token();
  const auto result = objective->evaluate(*small.model, small.forward_options(batch));
  const float loss = read_tensor(*expected, "loss")[0];
  EXPECT_NEAR(result.loss_sum / static_cast<double>(result.num_trained_tokens), loss,
              tolerance::network(64, 20) * std::max(loss, 1.0f));
}

INSTANTIATE_TEST_SUITE_P(Models, LlamaGolden,
                         ::testing::Values("tied_gqa", "untied_bias", "head_dim", "old_style",
                                           "sharded_bf16", "llama3_rope"));

TEST(Llama, ATokenOutsideTheVocabularyIsRefused) {
  SmallModel small("tied_gqa");
  const TokenBatch batch = make_batch({{1, 96}});
  Tape tape(small.store, autograd::Recording::kOff);
  EXPECT_THROW(small.model->forward(tape, small.forward_options(batch)), DataError);
}

TEST(Llama, ThreadsDoNotChangeABit) {
  SmallModel small("tied_gqa");
  std::vector<int32_t> ids;
  const CounterRng rng(5);
  for (int i = 0; i < 200; ++i)
    ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(i), 96)));
  const TokenBatch batch = make_batch({ids});
  std::vector<std::vector<float>> results;
  const int before = num_threads();
  for (const int threads : {1, 2, 3, 4, 8}) {
    set_num_threads(threads);
    Tape tape(small.store, autograd::Recording::kOff);
    const Variable hidden = small.model->forward(tape, small.forward_options(batch));
    const float* values = hidden.value().data<const float>();
    results.emplace_back(values, values + 200 * 32);
  }
  set_num_threads(before);
  for (const auto& result : results)
    EXPECT_EQ(std::memcmp(result.data(), results[0].data(), result.size() * 4), 0);
}

TEST(Llama, QuantisedBasesStayNearTheDenseOne) {
  std::vector<double> losses;
  for (const char* method : {"none", "int8", "nf4"}) {
    LoadOptions options;
    options.quantization.method = method;
    options.quantization.block_size = 32;
    options.quantization.double_quant = true;
    SmallModel small("untied_bias", options);
    const TokenBatch batch = make_batch({{1, 5, 9, 60, 33, 2, 90, 17}});
    const auto result =
        objectives::make_next_token()->evaluate(*small.model, small.forward_options(batch));
    losses.push_back(result.loss_sum / 7.0);
  }
  EXPECT_NEAR(losses[1], losses[0], 0.05 * losses[0]);
  EXPECT_NEAR(losses[2], losses[0], 0.25 * losses[0]);
  EXPECT_NE(losses[1], losses[0]);
  EXPECT_NE(losses[2], losses[0]);
}

TEST(Head, GradientOfHiddenEqualsFiniteDifference) {
  SmallModel small("untied_bias");
  const std::vector<int32_t> labels = {3, kIgnoreLabel, 95, 0};
  Tensor hidden(Shape{4, 32}, DType::kFloat32);
  const CounterRng rng(1);
  for (int64_t i = 0; i < hidden.numel(); ++i)
    hidden.data<float>()[i] = rng.normal(static_cast<uint64_t>(i));
  const auto loss_at = [&](autograd::Recording recording) {
    Tape tape(small.store, recording);
    return head_cross_entropy(tape, small.model->head(), Variable::leaf(hidden.clone()), labels,
                              0.25f);
  };
  const HeadLoss loss = loss_at(autograd::Recording::kOn);
  EXPECT_EQ(loss.num_trained_tokens, 3);
  const double h = 1e-2;
  for (int64_t i = 0; i < hidden.numel(); ++i) {
    const float kept = hidden.data<float>()[i];
    hidden.data<float>()[i] = kept + static_cast<float>(h);
    const double above = loss_at(autograd::Recording::kOff).loss_sum;
    hidden.data<float>()[i] = kept - static_cast<float>(h);
    const double below = loss_at(autograd::Recording::kOff).loss_sum;
    hidden.data<float>()[i] = kept;
    EXPECT_NEAR(loss.hidden_grad.data<float>()[i], 0.25 * (above - below) / (2.0 * h),
                tolerance::central_difference(loss.loss_sum, h, 1.0));
  }
}

TEST(Head, ArgmaxEqualsTheLargestLogit) {
  SmallModel small("tied_gqa");
  Tensor hidden(Shape{9, 32}, DType::kFloat32);
  const CounterRng rng(8);
  for (int64_t i = 0; i < hidden.numel(); ++i)
    hidden.data<float>()[i] = rng.normal(static_cast<uint64_t>(i));
  const Tensor logits = head_logits(small.model->head(), hidden);
  std::vector<int32_t> ids(9);
  for (const int64_t num_ids : {96, 40, 1}) {  // the rest of the table is padding
    head_argmax(small.model->head(), hidden, num_ids, ids);
    for (int64_t row = 0; row < 9; ++row) {
      const float* first = logits.data<float>() + row * 96;
      EXPECT_EQ(ids[static_cast<size_t>(row)], std::max_element(first, first + num_ids) - first);
    }
  }
}

}  // namespace
}  // namespace shardtune::models
