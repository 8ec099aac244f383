// Sums over groups of columns against fp64, and the way back as their transpose.
#include "kernels/column_groups.h"

#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16};

TEST(ColumnGroups, SumsEqualThoseInFp64) {
  for (const int64_t group : {1, 3, 8, 32}) {
    for (const DType from : kFloats) {
      for (const DType to : kFloats) {
        const Tensor x = random_tensor({7, 5 * group}, from, 1);
        const Tensor y(Shape{7, 5}, to);
        sum_column_groups(x, 0.75f, y);
        for (int64_t i = 0; i < y.numel(); ++i) {
          double sum = 0.0, magnitude = 0.0;
          for (int64_t k = i * group; k < (i + 1) * group; ++k) {
            sum += load_element(x, k);
            magnitude += std::abs(load_element(x, k));
          }
          const double bound = static_cast<double>(group + 1) * kRoundoffF32 * magnitude +
                               roundoff(to) * std::abs(sum);
          EXPECT_NEAR(load_element(y, i), 0.75 * sum, bound) << group;
        }
      }
    }
  }
}

TEST(ColumnGroups, TheWayBackGivesEveryColumnItsSumsGradient) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      const Tensor dy = random_tensor({7, 5}, from, 1);
      const Tensor dx = random_tensor({7, 20}, to, 2), before = dx.clone();
      spread_column_groups(dy, 0.5f, dx, Accumulate::kYes);
      const Tensor fresh(Shape{7, 20}, to);
      spread_column_groups(dy, 0.5f, fresh, Accumulate::kNo);
      for (int64_t i = 0; i < dx.numel(); ++i) {
        const double value = 0.5 * load_element(dy, i / 4);
        EXPECT_NEAR(load_element(fresh, i), value, roundoff(to) * std::abs(value));
        EXPECT_NEAR(load_element(dx, i), load_element(before, i) + value,
                    2.0 * roundoff(to) * (std::abs(load_element(before, i)) + std::abs(value)));
      }
    }
  }
}

TEST(ColumnGroups, RefuseColumnsThatAreNoWholeGroups) {
  const Tensor x(Shape{2, 10}, DType::kFloat32), y(Shape{2, 4}, DType::kFloat32);
  EXPECT_THROW(sum_column_groups(x, 1.0f, y), ArgumentError);
  EXPECT_THROW(spread_column_groups(y, 1.0f, x, Accumulate::kNo), ArgumentError);
}

TEST(ColumnGroups, SameBitsAtAnyThreadCount) {
  const Tensor x = random_tensor({301, 96}, DType::kBFloat16, 1);
  expect_same_bits_at_any_thread_count(
      [&] {
        std::vector<Tensor> outputs;
        outputs.emplace_back(Shape{301, 6}, DType::kFloat32);
        outputs.push_back(Tensor::zeros({301, 96}, DType::kBFloat16));
        sum_column_groups(x, 0.3f, outputs[0]);
        spread_column_groups(outputs[0], 0.3f, outputs[1], Accumulate::kYes);
        return outputs;
      },
      "column_groups");
}

}  // namespace
}  // namespace shardtune::kernels
