// Every operation of the tape against central differences in fp32, and what the tape frees, shares
// and recomputes.
#include "autograd/ops.h"

#include <gtest/gtest.h>

#include <cstring>

#include "autograd/matrix_ops.h"
#include "tests/autograd/ops_fixture.h"

namespace shardtune::autograd {
namespace {

using testing::expect_gradient;
using testing::random_tensor;
using testing::weighted_sum;

using OpsTest = testing::OpsFixture;

TEST_F(OpsTest, AddGoesBackToBoth) {
  check({{3, 5}, {3, 5}}, [](Tape& tape, const auto& x) { return add(tape, x[0], x[1]); });
}

TEST_F(OpsTest, AddOfOneValueTwiceSumsBothGradients) {
  check({{3, 5}}, [](Tape& tape, const auto& x) { return add(tape, x[0], x[0]); });
}

TEST_F(OpsTest, MulGoesBackToBothAndToARow) {
  check({{3, 5}, {3, 5}, {5}},
        [](Tape& tape, const auto& x) { return mul(tape, mul(tape, x[0], x[1]), x[2]); });
}

TEST_F(OpsTest, ScaledMultipliesTheGradient) {
  check({{3, 5}}, [](Tape& tape, const auto& x) { return scaled(tape, x[0], -1.5f); });
}

TEST_F(OpsTest, ActivationsGoBack) {
  using kernels::Activation;
  check({{4, 6}}, [](Tape& tape, const auto& x) {
    Variable y = activate(tape, Activation::kGelu, x[0]);
    y = add(tape, y, activate(tape, Activation::kGeluTanh, x[0]));
    y = add(tape, y, activate(tape, Activation::kSilu, x[0]));
    y = add(tape, y, activate(tape, Activation::kTanh, x[0]));
    return add(tape, y, activate(tape, Activation::kSigmoid, x[0]));
  });
}

TEST_F(OpsTest, RmsNormGoesBack) {
  const ParameterId weight =
      store_.declare({"norm", unit_, ParameterKind::kFrozen, DType::kFloat32, Shape{8}});
  store_.publish(weight, random_tensor({8}, 3).view().bytes());
  check(
      {{4, 8}},
      [&](Tape& tape, const auto& x) {
        return rms_norm(tape, x[0], {weight, 1e-5f, DType::kFloat32});
      },
      400.0);
}

TEST_F(OpsTest, LayerNormGoesBack) {
  const auto frozen = [&](const char* name, uint64_t key) {
    const ParameterId id =
        store_.declare({name, unit_, ParameterKind::kFrozen, DType::kFloat32, Shape{9}});
    store_.publish(id, random_tensor({9}, key).view().bytes());
    return id;
  };
  const ParameterId weight = frozen("norm", 31), bias = frozen("shift", 32);
  check(
      {{5, 9}},
      [&](Tape& tape, const auto& x) {
        return layer_norm(tape, x[0], {weight, bias, 1e-5f, DType::kFloat32});
      },
      400.0);
}

TEST_F(OpsTest, SwigluGoesBack) {
  check({{3, 7}, {3, 7}}, [](Tape& tape, const auto& x) { return swiglu(tape, x[0], x[1]); });
}

TEST_F(OpsTest, LinearAndBiasGoBackToWeightBiasAndInput) {
  const ParameterId weight = trainable("weight", {6, 5}, 11);
  const ParameterId bias = trainable("bias", {6}, 12);
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    return add_bias(tape, linear(tape, x[0], weight), bias);
  });
}

TEST_F(OpsTest, AWeightUsedTwiceGetsBothContributions) {
  const ParameterId weight = trainable("weight", {5, 5}, 11);
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    return linear(tape, linear(tape, x[0], weight), weight);
  });
}

TEST_F(OpsTest, LowRankUpdateGoesBackToEverything) {
  const ParameterId base = trainable("base", {6, 5}, 10);
  const LowRank update{trainable("lora_A", {2, 5}, 11), trainable("lora_B", {6, 2}, 12), 0.7f};
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    return low_rank_update(tape, linear(tape, x[0], base), x[0], update);
  });
}

TEST_F(OpsTest, LowRankUpdateOfAProductInOnePassGoesBackToEverything) {
  const LowRank update{trainable("lora_A", {2, 5}, 11), trainable("lora_B", {6, 2}, 12), 0.7f};
  const Tensor base = random_tensor({6, 5}, 13);
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    UnmadeProduct product;
    product.shape = Shape{4, 6};
    product.y = tape.unmade(product.shape, {x[0]}, DType::kFloat32);
    product.make = [&](const kernels::LowRankTerm& term, const TensorView& sum) {
      kernels::gemm_with_low_rank(x[0].value(), base, term, sum);
    };
    tape.record(product.y, [&base, x = x[0].grad_ref()](Tensor& dy) {
      const GradSlot slot = x.slot();
      kernels::gemm(dy, base, kernels::Transpose::kNo, slot.grad, slot.accumulate);
    });
    return low_rank_update(tape, product, x[0], update);
  });
}

TEST_F(OpsTest, LowRankUpdateGoesBackToItsSingularValues) {
  const ParameterId base = trainable("base", {6, 5}, 10);
  LowRank update{trainable("lora_A", {2, 5}, 11), trainable("lora_B", {6, 2}, 12), 0.7f};
  update.lora_E = trainable("lora_E", {2, 1}, 13);
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    return low_rank_update(tape, linear(tape, x[0], base), x[0], update);
  });
}

// The identity as quantiser: then the way back is that of the merged weight.
TEST_F(OpsTest, StraightThroughGoesBackToLowRankFactorsAndInput) {
  const LowRank update{trainable("lora_A", {2, 5}, 11), trainable("lora_B", {6, 2}, 12), 0.7f};
  const Tensor base = random_tensor({6, 5}, 13);
  check({{4, 5}}, [&](Tape& tape, const auto& x) {
    const auto* const a = store_.value(update.lora_A).template data<const float>();
    const auto* const b = store_.value(update.lora_B).template data<const float>();
    Tensor merged = base.clone();
    for (int64_t i = 0; i < 30; ++i)
      merged.data<float>()[i] +=
          update.scale * (b[i / 5 * 2] * a[i % 5] + b[i / 5 * 2 + 1] * a[5 + i % 5]);
    const Variable y =
        matmul(tape, x[0], Variable::constant(std::move(merged)), kernels::Transpose::kYes);
    return low_rank_straight_through(tape, y, x[0], update);
  });
}

TEST_F(OpsTest, RopeAndAttentionGoBackWithPrefixAndSamples) {
  static const std::vector<int32_t> kOffsets = {0, 3, 7};
  static const std::vector<int32_t> kPositions = {0, 1, 2, 0, 1, 2, 3};
  static const std::vector<float> kInverse = kernels::rope_inverse_frequencies(4, 100.0);
  kernels::AttentionShape shape;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 4;
  shape.scale = 0.5f;
  check(
      {{7, 16}, {7, 8}, {7, 8}, {2, 8}, {2, 8}},
      [&](Tape& tape, const auto& x) {
        const kernels::RopeArgs args{kPositions, kInverse};
        const Variable q = rope(tape, scaled(tape, x[0], 1.0f), args);
        const Variable k = rope(tape, scaled(tape, x[1], 1.0f), args);
        return attention(tape, {q, k, x[2], x[3], x[4], kOffsets}, shape);
      },
      400.0);
}

TEST_F(OpsTest, DropoutUsesOneMaskBothWays) {
  auto tokens = std::make_shared<DropoutTokens>();
  tokens->sample_of_token = {3, 3, 9, 9};
  tokens->index_in_sample = {0, 1, 0, 1};
  check({{4, 6}}, [&](Tape& tape, const auto& x) { return dropout(tape, x[0], 0.4f, 99, tokens); });
}

TEST_F(OpsTest, CheckpointGivesTheSameBits) {
  const ParameterId weight = trainable("weight", {5, 5}, 11);
  store_.seal();
  const auto body = [&](Tape& tape, const Variable& x) {
    Variable y;
    tape.in_unit(unit_, [&] {
      y = add(tape, x, activate(tape, kernels::Activation::kTanh, linear(tape, x, weight)));
    });
    return y;
  };
  std::vector<float> results[2];
  for (const bool recompute : {false, true}) {
    store_.begin_step(1);
    store_.begin_micro_batch(0);
    Tape tape(store_, Recording::kOn);
    const Variable x = Variable::leaf(random_tensor({4, 5}, 1));
    Variable y = x;
    for (int repeat = 0; repeat < 3; ++repeat)
      y = recompute ? tape.checkpoint(y, body) : body(tape, y);
    tape.backward(y, random_tensor({4, 5}, 2));
    store_.end_round();
    store_.finish_gradients();
    std::vector<float>& result = results[recompute ? 1 : 0];
    result.assign(x.grad().data<const float>(), x.grad().data<const float>() + 20);
    const auto gradient = store_.segments()[0].gradient;
    result.insert(result.end(), gradient.begin(), gradient.end());
  }
  ASSERT_EQ(results[0].size(), 45u);
  EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), 45 * sizeof(float)), 0);
}

TEST_F(OpsTest, AParameterOutsideItsUnitIsRefused) {
  const ParameterId weight = trainable("weight", {5, 5}, 11);
  store_.seal();
  Tape tape(store_, Recording::kOff);
  const Variable x = Variable::constant(random_tensor({4, 5}, 1));
  EXPECT_THROW(linear(tape, x, weight), ArgumentError);
}

}  // namespace
}  // namespace shardtune::autograd
