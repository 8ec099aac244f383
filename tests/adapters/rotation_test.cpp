// Rotations of blocks: gradients against central differences, orthogonality, and that a rotated
// weight does what a rotated input does.
#include "adapters/rotation.h"

#include <gtest/gtest.h>

#include "kernels/gemm.h"
#include "tests/autograd/ops_fixture.h"

namespace shardtune::adapters {
namespace {

using autograd::Recording;
using autograd::Tape;
using autograd::Variable;
using testing::random_tensor;
using Rotation = testing::OpsFixture;

TEST_F(Rotation, GoesBackThroughTheSeriesToUpperTriangles) {
  const ParameterId upper = trainable("upper", {2, 6}, 3);
  check(
      {{5, 8}},
      [&](Tape& tape, const auto& x) {
        return rotate_blocks(tape, x[0], cayley(tape, tape.parameter(upper), 2, 4, {5, {}}));
      },
      400.0);
}

TEST_F(Rotation, GoesBackThroughTheExactFormToWholeMatricesAndASharedBlock) {
  const ParameterId whole = trainable("whole", {1, 2, 3, 3}, 3);
  const ParameterId shared = trainable("shared", {1, 3}, 4);
  check(
      {{5, 6}},
      [&](Tape& tape, const auto& x) {
        const Cayley exact{0, Cayley::Parameters::kWholeMatrix};
        const Variable y =
            rotate_blocks(tape, x[0], cayley(tape, tape.parameter(whole), 2, 3, exact));
        return rotate_blocks(tape, y, cayley(tape, tape.parameter(shared), 1, 3, {0, {}}));
      },
      400.0);
}

TEST_F(Rotation, HeldBlocksDoNotRotateAndGetNoGradient) {
  const ParameterId upper = trainable("upper", {3, 3}, 3);
  check(
      {{5, 9}},
      [&](Tape& tape, const auto& x) {
        const Variable r = cayley(tape, tape.parameter(upper), 3, 3, {0, {}});
        return rotate_blocks(tape, x[0], hold_blocks(tape, r, {0, 1, 0}));
      },
      400.0);
  Tape tape(store_, Recording::kOff);
  const Tensor x = random_tensor({2, 9}, 1);
  const Variable r = cayley(tape, Variable::constant(random_tensor({3, 3}, 9)), 3, 3, {0, {}});
  const Variable y =
      rotate_blocks(tape, Variable::constant(x.clone()), hold_blocks(tape, r, {0, 1, 0}));
  for (int i = 0; i < 18; ++i) {
    const float before = x.data<float>()[i], after = y.value().data<const float>()[i];
    EXPECT_EQ(before == after, i % 9 / 3 == 1) << i;
  }
}

TEST_F(Rotation, DrawsAsManyBlocksAsAskedForEachAsOften) {
  std::vector<int> times(10, 0);
  for (uint64_t key = 0; key < 2000; ++key) {
    const std::vector<uint8_t> marks = draw_blocks(CounterRng(key), 10, 0.37);
    int held = 0;
    for (size_t k = 0; k < marks.size(); ++k) {
      times[k] += marks[k];
      held += marks[k];
    }
    ASSERT_EQ(held, 3);
  }
  // Binomial(2000, 0.3): five deviations of 20.5.
  for (const int count : times)
    EXPECT_NEAR(count, 600, 103);
}

TEST_F(Rotation, ExactRotationsAreOrthogonalAndRotateWeightsAsInputs) {
  const Tensor upper = random_tensor({2, 6}, 9);
  Tape tape(store_, Recording::kOff);
  const Variable r = cayley(tape, Variable::constant(upper.clone()), 2, 4, {0, {}});
  Tensor product(Shape{4, 4}, DType::kFloat32);
  const TensorView second = r.value().rows(1, 2).reshaped({4, 4});
  kernels::gemm(second, second, kernels::Transpose::kYes, product, kernels::Accumulate::kNo);
  for (int i = 0; i < 16; ++i)
    EXPECT_NEAR(product.data<float>()[i], i % 5 == 0 ? 1.0f : 0.0f, 1e-5f);
  const Tensor x = random_tensor({3, 8}, 1), weight = random_tensor({5, 8}, 2);
  const Variable rotated = rotate_blocks(tape, Variable::constant(x.clone()), r);
  Tensor want(Shape{3, 5}, DType::kFloat32), found(Shape{3, 5}, DType::kFloat32);
  kernels::gemm(rotated.value(), weight, kernels::Transpose::kYes, want, kernels::Accumulate::kNo);
  Tensor rows = weight.clone();
  rotate_weight_rows(r.value(), rows);
  kernels::gemm(x, rows, kernels::Transpose::kYes, found, kernels::Accumulate::kNo);
  for (int i = 0; i < 15; ++i)
    EXPECT_NEAR(found.data<float>()[i], want.data<float>()[i], 1e-4f);
}

}  // namespace
}  // namespace shardtune::adapters
