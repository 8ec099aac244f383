// Attention to trained rows alone: against its definition, and its gradients against differences.
#include "adapters/prompt_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/autograd/finite_difference.h"
#include "tests/autograd/ops_fixture.h"

namespace shardtune::adapters {
namespace {

kernels::AttentionShape grouped() {
  kernels::AttentionShape shape;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 4;
  shape.scale = 0.5f;
  return shape;
}

using PromptAttention = testing::OpsFixture;

TEST_F(PromptAttention, GradientsEqualFiniteDifferences) {
  check(
      {{7, 16}, {3, 8}, {3, 8}},
      [](autograd::Tape& tape, const auto& x) {
        return prompt_attention(tape, x[0], x[1], x[2], grouped());
      },
      400.0);
}

// One row gets all of every softmax; equal rows share it.
TEST_F(PromptAttention, SharesAddUpToOne) {
  const Tensor q = testing::random_tensor({5, 16}, 1), v = testing::random_tensor({1, 8}, 2);
  const auto constant = [](const Tensor& x) { return autograd::Variable::constant(x.clone()); };
  autograd::Tape tape(store_, autograd::Recording::kOff);
  const auto out = prompt_attention(tape, constant(q), constant(testing::random_tensor({1, 8}, 3)),
                                    constant(v), grouped());
  for (int64_t i = 0; i < out.numel(); ++i) {
    const int64_t column = i % 16;
    EXPECT_FLOAT_EQ(out.value().data<const float>()[i],
                    v.data<const float>()[column / 8 * 4 + column % 4]);
  }
}

}  // namespace
}  // namespace shardtune::adapters
