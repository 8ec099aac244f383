#include "kernels/rope.h"

#include "kernels/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

const std::vector<DType> kFloats = {DType::kFloat32, DType::kBFloat16};

std::vector<int32_t> positions_of(int64_t tokens) {
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < tokens; ++t)
    positions.push_back(static_cast<int32_t>(t % 2 == 0 ? t : 131071 * t));
  return positions;
}

TEST(Rope, EqualsTheReferenceInBothDirections) {
  for (const int64_t head_dim : {2, 6, 34, 64, 128}) {
    for (const DType dtype : kFloats) {
      for (const auto direction : {RopeDirection::kForward, RopeDirection::kInverse}) {
        const std::vector<float> frequencies = rope_inverse_frequencies(head_dim, 10000.0);
        const std::vector<int32_t> positions = positions_of(19);
        const RopeArgs args{positions, frequencies};
        const Tensor x = random_tensor({19, 3 * head_dim}, dtype, 1);
        const Tensor expected = converted(x, DType::kFloat32);
        rope(x, args, direction);
        rope_reference(expected, args, direction);
        // sin and cos within 2 ulp, times values below 5; three roundings.
        expect_within(
            x, expected,
            [&](int64_t, double e) {
              return 5 * 10 * kRoundoffF32 + 1.01 * roundoff(dtype) * std::abs(e);
            },
            "head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST(Rope, InverseTurnsBack) {
  const std::vector<float> frequencies = rope_inverse_frequencies(64, 1e4);
  const std::vector<int32_t> positions = positions_of(7);
  const Tensor x = random_tensor({7, 128}, DType::kFloat32, 1), before = x.clone();
  rope(x, {positions, frequencies}, RopeDirection::kForward);
  rope(x, {positions, frequencies}, RopeDirection::kInverse);
  for (int64_t i = 0; i < x.numel(); ++i)
    EXPECT_NEAR(x.data<float>()[i], before.data<float>()[i], 1e-5);
}

TEST(Rope, PositionZeroChangesNothingAndPairsAreHalvesApart) {
  const std::vector<float> frequencies = rope_inverse_frequencies(4, 100.0);
  const std::vector<int32_t> positions = {0, 2};
  const Tensor x = Tensor::from(std::vector<float>{1, 2, 3, 4, 1, 0, 0, 0}, {2, 4});
  rope(x, {positions, frequencies}, RopeDirection::kForward);
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(x.data<float>()[i], static_cast<float>(i + 1));
  EXPECT_NEAR(x.data<float>()[4], std::cos(2.0), 1e-6);
  EXPECT_NEAR(x.data<float>()[6], std::sin(2.0), 1e-6);
  EXPECT_EQ(x.data<float>()[5], 0.0f);
  EXPECT_NEAR(frequencies[1], 0.1, 1e-8);
}

TEST(Rope, RefusesOddHeadsAndMissingPositions) {
  EXPECT_THROW(rope_inverse_frequencies(5, 1e4), ArgumentError);
  const std::vector<float> frequencies = rope_inverse_frequencies(4, 1e4);
  const std::vector<int32_t> one = {0};
  const Tensor x = Tensor::zeros({2, 4}, DType::kFloat32);
  EXPECT_THROW(rope(x, {one, frequencies}, RopeDirection::kForward), ArgumentError);
  const Tensor y = Tensor::zeros({1, 6}, DType::kFloat32);
  EXPECT_THROW(rope(y, {one, frequencies}, RopeDirection::kForward), ArgumentError);
}

TEST(Rope, SameBitsAtAnyThreadCount) {
  const std::vector<float> frequencies = rope_inverse_frequencies(34, 1e4);
  const std::vector<int32_t> positions = positions_of(301);
  for (const DType dtype : kFloats) {
    const Tensor x = random_tensor({301, 102}, dtype, 1);
    expect_same_bits_at_any_thread_count(
        [&] {
          std::vector<Tensor> outputs;
          outputs.push_back(x.clone());
          rope(outputs[0], {positions, frequencies}, RopeDirection::kForward);
          return outputs;
        },
        "rope");
  }
}

}  // namespace
}  // namespace shardtune::kernels
