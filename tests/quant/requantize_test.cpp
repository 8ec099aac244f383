// The parts of merge-aware training: kept weights, the low-rank change by rows, quantising anew.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "quant/double_quant.h"
#include "quant/kept_weight.h"
#include "quant/low_rank_rows.h"
#include "quant/nf4.h"
#include "tests/quant/weight_fixture.h"

namespace shardtune::quant {
namespace {

std::vector<float> kept_values(KeptForm form, const std::vector<float>& values, int64_t columns) {
  const int64_t rows = std::ssize(values) / columns;
  KeptWeight kept(form, rows, columns);
  // In two parts, as slabs come.
  const int64_t first = rows / 3;
  kept.write_rows(0, std::span(values).first(first * columns));
  kept.write_rows(first, std::span(values).subspan(first * columns));
  std::vector<float> decoded(values.size());
  kept.decode_rows(0, rows, decoded.data());
  std::vector<float> last(columns);
  kept.decode_rows(rows - 1, rows, last.data());
  EXPECT_EQ(std::memcmp(last.data(), decoded.data() + (rows - 1) * columns, columns * 4), 0);
  return decoded;
}

TEST(KeptWeight, EveryFormStaysWithinHalfAStep) {
  for (const int64_t columns : {1, 17, 64, 200}) {
    const std::vector<float> values = normal_values(9 * columns, 0.05f, 7);
    const auto bf16 = kept_values(KeptForm::kBFloat16, values, columns);
    const auto int8 = kept_values(KeptForm::kInt8, values, columns);
    const auto residual = kept_values(KeptForm::kResidual, values, columns);
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t row = i / static_cast<size_t>(columns);
      float row_absmax = 0.0f;
      for (int64_t j = 0; j < columns; ++j)
        row_absmax = std::max(row_absmax, std::fabs(values[row * columns + j]));
      EXPECT_EQ(bf16[i], static_cast<float>(BFloat16(values[i])));
      EXPECT_LE(std::fabs(int8[i] - values[i]), row_absmax / 254 * 1.001f);
      // The widest cell of NF4, its second, has 0.238 of absmax.
      EXPECT_LE(std::fabs(residual[i] - values[i]), row_absmax * 0.238f / 4.0f);
    }
  }
}

// What the residual form keeps has the codes and the absmax of the weight itself.
TEST(KeptWeight, ResidualGivesTheCodesOfTheWeight) {
  constexpr int64_t kColumns = 128, kRows = 24;
  std::vector<float> values = normal_values(kRows * kColumns, 0.05f, 11);
  std::fill_n(values.begin() + 5 * kColumns, kColumns, 0.0f);
  const auto kept = kept_values(KeptForm::kResidual, values, kColumns);
  const auto quantised = [](const std::vector<float>& x) {
    std::pair<std::vector<uint8_t>, std::vector<float>> result{std::vector<uint8_t>(x.size() / 2),
                                                               std::vector<float>(x.size() / 64)};
    EXPECT_EQ(nf4_quantize(x, 64, result.first, result.second), std::nullopt);
    return result;
  };
  EXPECT_EQ(quantised(kept), quantised(values));
}

// A change that is small against the cells moves as many codes as it would of the weight itself.
TEST(KeptWeight, ResidualFollowsSmallChanges) {
  constexpr int64_t kColumns = 256, kRows = 256;
  const std::vector<float> values = normal_values(kRows * kColumns, 0.05f, 13);
  const auto kept = kept_values(KeptForm::kResidual, values, kColumns);
  const auto codes_of = [](std::vector<float> x, float change) {
    for (float& v : x)
      v += change;
    std::vector<uint8_t> codes(x.size() / 2);
    std::vector<float> absmax(x.size() / 64);
    EXPECT_EQ(nf4_quantize(x, 64, codes, absmax), std::nullopt);
    return codes;
  };
  const auto num_moved = [&](const std::vector<float>& x, float change) {
    const auto before = codes_of(x, 0.0f), after = codes_of(x, change);
    int64_t moved = 0;
    for (size_t i = 0; i < before.size(); ++i)
      moved += (before[i] >> 4 != after[i] >> 4) + ((before[i] & 15) != (after[i] & 15));
    return static_cast<double>(moved);
  };
  // Cells are some 0.01 wide, their eighths 0.0013. Of 65,536 codes 700 to 5,000 move.
  for (const float change : {1e-4f, -3e-4f, 7e-4f}) {
    const double expected = num_moved(values, change);
    EXPECT_NEAR(num_moved(kept, change), expected, 0.1 * expected + 4 * std::sqrt(expected))
        << change;
  }
}

TEST(KeptWeight, LevelsAscendAndTakeTheFormsBytes) {
  const auto& ranges = residual_ranges();
  for (size_t i = 1; i < 64; ++i)
    EXPECT_NEAR(ranges[i - 1].low + ranges[i - 1].width, ranges[i].low, 1e-6f) << i;
  EXPECT_EQ(ranges.front().low, -1.0f);
  EXPECT_EQ(ranges.back().low, 1.0f);
  EXPECT_EQ(KeptWeight(KeptForm::kBFloat16, 10, 128).num_bytes(), 2560);
  EXPECT_EQ(KeptWeight(KeptForm::kInt8, 10, 128).num_bytes(), 1280 + 40);
  EXPECT_EQ(KeptWeight(KeptForm::kResidual, 10, 128).num_bytes(), 640 + 320 + 80);
  EXPECT_THROW(KeptWeight(KeptForm::kInt8, 2, 4).write_rows(1, std::vector<float>(8)),
               ArgumentError);
}

TEST(LowRankRows, HaveTheBitsOfThePlainForm) {
  for (const int64_t columns : {1, 15, 16, 33, 130}) {
    for (const int64_t rank : {1, 3, 16}) {
      constexpr int64_t kRows = 11;
      const Tensor a = Tensor::from(normal_values(rank * columns, 0.3f, 1), {rank, columns});
      const Tensor b = Tensor::from(normal_values(kRows * rank, 0.3f, 2), {kRows, rank});
      const LowRankChange change{a.view(), b.view(), 0.7f};
      const std::vector<float> base = normal_values(kRows * columns, 0.05f, 3);
      std::vector<float> expected = base, found = base;
      add_low_rank_rows_reference(change, 0, kRows, expected.data());
      add_low_rank_rows(change, 0, 6, found.data());
      add_low_rank_rows(change, 6, kRows, found.data() + 6 * columns);
      ASSERT_EQ(std::memcmp(found.data(), expected.data(), found.size() * 4), 0)
          << columns << " columns, rank " << rank;
    }
  }
  const Tensor a({2, 4}, DType::kFloat32), b({3, 3}, DType::kFloat32);
  float out[12] = {};
  EXPECT_THROW(add_low_rank_rows({a.view(), b.view(), 1.0f}, 0, 1, out), ArgumentError);
}

// Whatever groups and threads it is cut into, the bytes are those of loading the same values.
TEST(Requantize, HasTheBytesOfLoading) {
  const QuantizationOptions formats[] = {
      {"nf4", 64, false}, {"nf4", 256, true}, {"fp4", 64, true}, {"int8", 64, false}};
  const int before = num_threads();
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{700, 96}, {217, 257}, {3, 5}}) {
    for (const QuantizationOptions& options : formats) {
      LoadedWeight changed(options, rows, columns, DType::kFloat32);
      const std::vector<float> values = normal_values(rows * columns, 0.08f, 99);
      set_num_threads(3);
      changed.weight->requantize(row_source(values, columns));
      set_num_threads(before);
      FakeStore store;
      const UnitId unit = store.add_unit("layer");
      const auto loaded =
          make_frozen_weight({&store, unit, "w", rows, columns, DType::kFloat32}, options);
      loaded->load(row_source(values, columns));
      for (const ParameterId id : loaded->components())
        EXPECT_TRUE(changed.store.bytes(id) == store.bytes(id))
            << options.method << " " << store.spec(id).name;
    }
  }
}

TEST(Requantize, ANonFiniteValueAndADenseWeightAreRefused) {
  LoadedWeight nf4({"nf4", 64, false}, 8, 64, DType::kFloat32);
  std::vector<float> values = normal_values(8 * 64, 0.05f, 5);
  values[3 * 64 + 9] = NAN;
  try {
    nf4.weight->requantize(row_source(values, 64));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const NonFiniteError& error) {
    EXPECT_NE(std::string(error.what()).find("at [3, 9]"), std::string::npos) << error.what();
  }
  LoadedWeight dense({"none", 64, false}, 8, 64, DType::kFloat32);
  EXPECT_FALSE(dense.weight->can_requantize());
  EXPECT_THROW(dense.weight->requantize(row_source(values, 64)), UnsupportedError);
}

}  // namespace
}  // namespace shardtune::quant
