#include "kernels/gemm_int8.h"

#include <limits>

#include "kernels/gemm_int8_cpu.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

struct Case {
  int64_t m, out, in;
};
// Odd extents, remainders of tiles, and in the last two more than one panel.
const std::vector<Case> kCases = {{1, 1, 1},        {1, 17, 217},   {7, 65, 3},
                                  {17, 217, 256},   {100, 64, 576}, {193, 130, 70},
                                  {13, 3000, 1700}, {5, 1900, 2500}};

Int8Weight weight_of(const Tensor& w, const Tensor& column_factors, const Tensor& row_factors) {
  const int64_t in = w.view().dim(1);
  Int8Weight weight{
      w.view().dim(0), in, {}, column_factors.data<float>(), row_factors.data<float>()};
  weight.blocks = [&w, in](const Block& block, const TensorView& out) {
    auto* to = out.data<float>();
    for (int64_t r = 0; r < block.num_rows; ++r)
      for (int64_t c = 0; c < block.num_columns; ++c)
        *to++ = w.data<float>()[(block.first_row + r) * in + block.first_column + c];
  };
  return weight;
}

/// Everything that a product needs, with factors as a caller chooses them.
struct Problem {
  Problem(const Case& c, Transpose transpose, DType input)
      : transpose(transpose),
        w(random_tensor({c.out, c.in}, DType::kFloat32, 1)),
        x(random_tensor({c.m, transpose == Transpose::kYes ? c.in : c.out}, input, 2)),
        columns({c.in}, DType::kFloat32),
        rows({c.out}, DType::kFloat32),
        absmax({c.out}, DType::kFloat32),
        x_factors(absolute(random_tensor({x.view().dim(1)}, DType::kFloat32, 3))),
        scales(random_tensor({transpose == Transpose::kYes ? c.out : c.in}, DType::kFloat32, 4)) {
    for (int64_t i = 0; i < c.in; ++i)
      columns.data<float>()[i] = std::ldexp(1.0f, static_cast<int>(i % 5) - 2);
    row_absmax_int8(weight(), absmax.data<float>());
    for (int64_t i = 0; i < c.out; ++i)
      rows.data<float>()[i] = 127.0f / absmax.data<float>()[i];
  }
  Int8Weight weight() const { return weight_of(w, columns, rows); }
  int64_t n() const { return scales.view().numel(); }

  Transpose transpose;
  Tensor w, x, columns, rows, absmax, x_factors, scales;
};

/// The formula, element by element: codes by nearbyint, sums in int64.
Tensor plain_product(const Problem& p, const TensorView& start, Accumulate accumulate) {
  const int64_t m = p.x.view().dim(0), depth = p.x.view().dim(1), in = p.w.view().dim(1);
  Tensor c(start.shape(), DType::kFloat32);
  for (int64_t t = 0; t < m; ++t) {
    std::vector<float> v(static_cast<size_t>(depth));
    float absmax = 0.0f;
    for (int64_t k = 0; k < depth; ++k) {
      v[k] = load_element(p.x, t * depth + k) * p.x_factors.data<float>()[k];
      absmax = std::max(absmax, std::abs(v[k]));
    }
    for (int64_t n = 0; n < p.n(); ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const int64_t row = p.transpose == Transpose::kYes ? n : k;
        const int64_t column = p.transpose == Transpose::kYes ? k : n;
        const float weight = p.w.data<float>()[row * in + column] * p.columns.data<float>()[column];
        sum += static_cast<int64_t>(std::nearbyint(weight * p.rows.data<float>()[row])) *
               static_cast<int64_t>(std::nearbyint(v[k] * (127.0f / absmax)));
      }
      float value = static_cast<float>(sum) * (absmax / 127.0f) * p.scales.data<float>()[n];
      if (accumulate == Accumulate::kYes)
        value = load_element(start, t * p.n() + n) + value;
      c.data<float>()[t * p.n() + n] = value;
    }
  }
  return c;
}

void expect_equal(const TensorView& found, const TensorView& expected, const std::string& what) {
  expect_within(
      found, expected, [](int64_t, double) { return 0.0; }, what);
}

// Integer sums are exact and everything else is rounded in one order: equality to the bit.
TEST(GemmInt8, EqualsTheFormulaToTheBitInBothFormsOfTheTile) {
  std::vector<int8::TileFunction> tiles = {&int8::portable_tile};
  if (has_fast_int8())
    tiles.push_back(int8::machine_tile());
  for (const Case& c : kCases) {
    for (const Transpose transpose : {Transpose::kNo, Transpose::kYes}) {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        const Problem p(c, transpose, dtype);
        const Int8Rows a = quantize_rows_int8(p.x, p.x_factors);
        const Accumulate accumulate = dtype == DType::kFloat32 ? Accumulate::kNo : Accumulate::kYes;
        const Tensor start = random_tensor({c.m, p.n()}, dtype, 5);
        const Tensor expected = converted(plain_product(p, start, accumulate), dtype);
        for (const int8::TileFunction tile : tiles) {
          const Tensor found = start.clone();
          int8::gemm(a, p.weight(), transpose, p.scales, found, accumulate, tile);
          expect_equal(found, expected,
                       std::to_string(c.m) + " x " + std::to_string(c.out) + " x " +
                           std::to_string(c.in) + (transpose == Transpose::kYes ? " q^T" : " q"));
        }
      }
    }
  }
}

TEST(GemmInt8, SameBitsAtAnyThreadCount) {
  for (const Transpose transpose : {Transpose::kNo, Transpose::kYes}) {
    const Problem p({300, 400, 320}, transpose, DType::kBFloat16);
    const auto run = [&] {
      std::vector<Tensor> outputs;
      outputs.emplace_back(Shape{300, p.n()}, DType::kBFloat16);
      gemm_int8(quantize_rows_int8(p.x, p.x_factors), p.weight(), transpose, p.scales, outputs[0],
                Accumulate::kNo);
      return outputs;
    };
    expect_same_bits_at_any_thread_count(run, "gemm_int8");
  }
}

// The largest codes at the greatest depth: the sum is 127 * 255 * 65,536 before the shift.
TEST(GemmInt8, SumsOfTheGreatestDepthFit) {
  const int64_t depth = kInt8MaxDepth;
  const Tensor x(Shape{1, depth}, DType::kFloat32), w(Shape{1, depth}, DType::kFloat32);
  const Tensor ones(Shape{depth}, DType::kFloat32), one(Shape{1}, DType::kFloat32);
  std::fill_n(ones.data<float>(), depth, 1.0f);
  std::fill_n(x.data<float>(), depth, 127.0f);
  std::fill_n(w.data<float>(), depth, 127.0f);
  one.data<float>()[0] = 1.0f;
  const Tensor c(Shape{1, 1}, DType::kFloat32);
  for (const int8::TileFunction tile :
       {&int8::portable_tile, has_fast_int8() ? int8::machine_tile() : &int8::portable_tile}) {
    int8::gemm(quantize_rows_int8(x, ones), weight_of(w, ones, one), Transpose::kYes, one, c,
               Accumulate::kNo, tile);
    EXPECT_EQ(c.data<float>()[0], 127.0f * 127.0f * static_cast<float>(depth));
  }
  const Tensor longer(Shape{1, depth + 1}, DType::kFloat32);
  const Tensor more(Shape{depth + 1}, DType::kFloat32);
  EXPECT_THROW(quantize_rows_int8(longer, more), ArgumentError);
}

TEST(QuantizeRowsInt8, KeepsWithinHalfAStepOfEachValue) {
  const Tensor x = random_tensor({9, 131}, DType::kFloat32, 7);
  const Tensor factors = absolute(random_tensor({131}, DType::kFloat32, 8));
  const Int8Rows a = quantize_rows_int8(x, factors);
  EXPECT_EQ(a.codes.view().dim(1), 132);
  for (int64_t t = 0; t < 9; ++t) {
    const float scale = a.scales.data<float>()[t];
    int32_t sum = 0;
    for (int64_t k = 0; k < 131; ++k) {
      const int8_t code = a.codes.data<int8_t>()[t * 132 + k];
      sum += code;
      // Half a step, and the roundings of two products.
      EXPECT_NEAR(scale * code, x.data<float>()[t * 131 + k] * factors.data<float>()[k],
                  0.5001 * scale);
    }
    EXPECT_EQ(sum, a.sums.data<int32_t>()[t]);
    EXPECT_EQ(a.codes.data<int8_t>()[t * 132 + 131], 0);
  }
}

// A NaN or an infinity must reach the loss; zeros and values near the smallest give zeros.
TEST(QuantizeRowsInt8, CarriesWhatIsNotFiniteAndSurvivesTinyRows) {
  const float inf = std::numeric_limits<float>::infinity();
  const Tensor x(Shape{4, 2}, DType::kFloat32), ones(Shape{2}, DType::kFloat32);
  const float values[] = {1.0f, inf, std::nanf(""), 2.0f, 0.0f, 0.0f, 1e-40f, -1e-38f};
  std::copy(std::begin(values), std::end(values), x.data<float>());
  std::fill_n(ones.data<float>(), 2, 1.0f);
  const Int8Rows a = quantize_rows_int8(x, ones);
  EXPECT_TRUE(std::isnan(a.scales.data<float>()[0]));
  EXPECT_TRUE(std::isnan(a.scales.data<float>()[1]));
  EXPECT_EQ(a.scales.data<float>()[2], 0.0f);
  EXPECT_EQ(a.scales.data<float>()[3], 0.0f);
}

}  // namespace
}  // namespace shardtune::kernels
