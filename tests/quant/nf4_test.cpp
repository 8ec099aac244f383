// The NF4 codec against its definition, written out value by value.
#include "quant/nf4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "core/parallel_for.h"
#include "quant/double_quant.h"

namespace shardtune::quant {
namespace {

struct Packed {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  bool operator==(const Packed&) const = default;
};

Packed quantize(std::span<const float> x, int64_t block_size) {
  const int64_t n = std::ssize(x);
  Packed result{std::vector<uint8_t>(ceil_div(n, 2)), std::vector<float>(ceil_div(n, block_size))};
  EXPECT_EQ(nf4_quantize(x, block_size, result.codes, result.absmax), std::nullopt);
  return result;
}

uint8_t code_by_definition(float v) {
  uint8_t code = 0;
  for (size_t i = 0; i + 1 < nf4_codebook().values.size(); ++i)
    code += (nf4_codebook().values[i] + nf4_codebook().values[i + 1]) / 2.0f < v ? 1 : 0;
  return code;
}

Packed quantize_by_definition(std::span<const float> x, int64_t block_size) {
  const int64_t n = std::ssize(x);
  Packed result{std::vector<uint8_t>(ceil_div(n, 2)), std::vector<float>(ceil_div(n, block_size))};
  for (int64_t i = 0; i < n + n % 2; ++i) {
    const int64_t first = i / block_size * block_size;
    const int64_t last = std::min(first + block_size, n);
    float absmax = 0.0f;
    for (int64_t j = first; j < last; ++j)
      absmax = std::max(absmax, std::fabs(x[j]));
    const float divisor = std::max(absmax, 1e-38f);
    const bool is_short = last - first < block_size;
    float v = 0.0f;
    if (i < n) {
      v = is_short ? x[i] / divisor : x[i] * (1.0f / divisor);
      result.absmax[i / block_size] = is_short ? divisor : absmax;
    }
    const uint8_t code = code_by_definition(std::clamp(v, -1.0f, 1.0f));
    result.codes[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? code << 4 : code);
  }
  return result;
}

std::vector<float> normal_values(int64_t n, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(static_cast<size_t>(n));
  std::generate(x.begin(), x.end(), [&] { return normal(generator); });
  return x;
}

TEST(Nf4, EveryBlockSizeAndLengthFollowsTheDefinition) {
  for (int64_t block_size = kMinBlockSize; block_size <= kMaxBlockSize; block_size *= 2) {
    for (const int64_t n : {int64_t{1}, int64_t{2}, int64_t{17}, int64_t{31}, block_size - 1,
                            block_size, block_size + 1, 3 * block_size + 15, int64_t{217 * 256}}) {
      std::vector<float> x = normal_values(n, 0.02f, static_cast<uint32_t>(n));
      EXPECT_EQ(quantize(x, block_size), quantize_by_definition(x, block_size))
          << "n " << n << " block_size " << block_size;
    }
  }
}

// Fills blocks whose absmax is 1, so that every value is its own normalised value.
void expect_codes(std::vector<float> values) {
  constexpr int64_t kBlock = 4096;
  std::vector<float> x;
  for (size_t i = 0; i < values.size(); ++i) {
    if (x.size() % kBlock == 0)
      x.push_back(1.0f);
    x.push_back(values[i]);
  }
  x.resize(static_cast<size_t>(round_up(std::ssize(x), kBlock)), 0.0f);
  for (size_t i = 0; i < x.size(); i += kBlock)
    x[i] = 1.0f;
  const Packed packed = quantize(x, kBlock);
  for (size_t i = 0; i < x.size(); ++i) {
    const int code = i % 2 == 0 ? packed.codes[i / 2] >> 4 : packed.codes[i / 2] & 15;
    ASSERT_EQ(code, code_by_definition(x[i])) << x[i];
  }
}

TEST(Nf4, EveryFloatNearAMidpointGetsItsCode) {
  std::vector<float> values;
  for (const float midpoint : nf4_codebook().midpoints) {
    for (int32_t ulp = -2000; ulp <= 2000; ++ulp)
      values.push_back(std::bit_cast<float>(std::bit_cast<int32_t>(midpoint) + ulp));
  }
  expect_codes(values);
}

TEST(Nf4, FloatsOfEveryExponentGetTheirCode) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits <= std::bit_cast<uint32_t>(1.0f); bits += 4093) {
    values.push_back(std::bit_cast<float>(bits));
    values.push_back(-std::bit_cast<float>(bits));
  }
  expect_codes(values);
}

TEST(Nf4, ATieGoesToTheLowerValue) {
  for (size_t m = 0; m < nf4_codebook().midpoints.size(); ++m) {
    std::vector<float> x(32, 0.0f);
    x[0] = 1.0f;
    x[1] = nf4_codebook().midpoints[m];
    EXPECT_EQ(quantize(x, 32).codes[0] & 15, static_cast<int>(m));
  }
}

TEST(Nf4, RoundTripStaysWithinHalfACodeStep) {
  const std::vector<float> x = normal_values(65 * 64, 3.0f, 5);
  const Packed packed = quantize(x, 64);
  const Tensor out({std::ssize(x)}, DType::kFloat32);
  nf4_dequantize({packed.codes.data(), {.absmax = packed.absmax.data()}, 64}, 0, out);
  // Widest gap of the table: -1 to -0.696; a few roundings of 2^-24 on top.
  const float half_step = (nf4_codebook().values[1] - nf4_codebook().values[0]) / 2.0f + 1e-6f;
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_LE(std::fabs(out.data<float>()[i] - x[i]), half_step * packed.absmax[i / 64]);
}

TEST(Nf4, AZeroBlockHasAbsmaxZeroUnlessItIsShort) {
  const Packed packed = quantize(std::vector<float>(64 + 5, 0.0f), 64);
  EXPECT_EQ(packed.absmax, (std::vector<float>{0.0f, 1e-38f}));
  EXPECT_TRUE(
      std::all_of(packed.codes.begin(), packed.codes.end(), [](int c) { return c == 0x77; }));
}

TEST(Nf4, TheFirstNonFiniteValueIsFound) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {kInf, -kInf, kNan, -kNan}) {
    for (const int64_t at : {0, 1, 63, 64, 500, 998}) {
      std::vector<float> x = normal_values(999, 1.0f, 7);
      x[at] = bad;
      x[998] = kNan;
      std::vector<uint8_t> codes(500);
      std::vector<float> absmax(16);
      EXPECT_EQ(nf4_quantize(x, 64, codes, absmax), at);
    }
  }
}

TEST(Nf4, AnyRangeDequantizesToTheDefinition) {
  const int64_t n = 1001;
  const std::vector<float> x = normal_values(n, 0.7f, 3);
  for (const int64_t block_size : {32, 64, 512}) {
    const Packed packed = quantize(x, block_size);
    const Nf4View view{packed.codes.data(), {.absmax = packed.absmax.data()}, block_size};
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, n},
                                     {1, 2},
                                     {1, n},
                                     {33, 64},
                                     {31, 999},
                                     {500, 500},
                                     {n - 1, n},
                                     {64, 128}}) {
      const Tensor f32({end - begin}, DType::kFloat32);
      const Tensor bf16({end - begin}, DType::kBFloat16);
      nf4_dequantize(view, begin, f32);
      nf4_dequantize(view, begin, bf16);
      for (int64_t i = begin; i < end; ++i) {
        const int code = i % 2 == 0 ? packed.codes[i / 2] >> 4 : packed.codes[i / 2] & 15;
        const float expected = nf4_codebook().values[code] * packed.absmax[i / block_size];
        ASSERT_EQ(f32.data<float>()[i - begin], expected) << i;
        ASSERT_EQ(bf16.data<BFloat16>()[i - begin].bits, BFloat16(expected).bits) << i;
      }
    }
  }
}

// The machine's form takes denormal products for 0, so blocks that have any go the plain way.
TEST(Nf4, BlocksOfTinyValuesDequantizeToTheDefinition) {
  std::vector<uint8_t> codes(5 * 32);
  for (size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<uint8_t>(i * 37);
  for (const float tiny : {0.0f, -0.0f, 1e-45f, 1e-40f, 1e-37f, -1e-37f, 2e-36f}) {
    const std::vector<float> absmax = {1.0f, tiny, -0.5f, 3e38f, tiny};
    const Tensor out({std::ssize(codes) * 2}, DType::kBFloat16);
    nf4_dequantize({codes.data(), {.absmax = absmax.data()}, 64}, 0, out);
    for (int64_t i = 0; i < out.numel(); ++i) {
      const int code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
      ASSERT_EQ(out.data<BFloat16>()[i].bits,
                BFloat16(nf4_codebook().values[code] * absmax[i / 64]).bits)
          << tiny << " at " << i;
    }
  }
}

TEST(Nf4, DoublyQuantizedAbsmaxIsRoundedTwice) {
  const std::vector<float> x = normal_values(64 * 600, 0.02f, 11);
  const Packed packed = quantize(x, 64);
  std::vector<uint8_t> codes(packed.absmax.size());
  std::vector<float> nested(ceil_div(std::ssize(codes), kNestedBlockSize));
  const float offset = absmax_offset(packed.absmax);
  quantize_absmax(packed.absmax, offset, codes, nested);
  const Tensor out({std::ssize(x)}, DType::kFloat32);
  const Nf4Absmax absmax{nullptr, codes.data(), nested.data(), offset};
  nf4_dequantize({packed.codes.data(), absmax, 64}, 0, out);
  for (size_t i = 0; i < x.size(); ++i) {
    const volatile float product =
        dynamic_map(DynamicMapKind::kSigned)[codes[i / 64]] * nested[i / 64 / kNestedBlockSize];
    const volatile float scale = product + offset;
    const int code = i % 2 == 0 ? packed.codes[i / 2] >> 4 : packed.codes[i / 2] & 15;
    ASSERT_EQ(out.data<float>()[i], nf4_codebook().values[code] * scale);
  }
}

TEST(Nf4, BitsDoNotDependOnTheNumberOfThreads) {
  const std::vector<float> x = normal_values(300 * 577, 1.0f, 13);
  const int before = num_threads();
  set_num_threads(1);
  const Packed expected = quantize(x, 64);
  for (const int threads : {2, 3, 8}) {
    set_num_threads(threads);
    EXPECT_EQ(quantize(x, 64), expected) << threads;
  }
  set_num_threads(before);
}

TEST(Nf4, WrongSizesAreRefused) {
  std::vector<float> x(64);
  std::vector<uint8_t> codes(32);
  std::vector<float> absmax(1);
  for (const int64_t block_size : {0, -64, 1, 16, 48, 63, 8192})
    EXPECT_THROW((void)nf4_quantize(x, block_size, codes, absmax), ArgumentError) << block_size;
  EXPECT_THROW((void)nf4_quantize(x, 32, codes, absmax), ArgumentError);
  codes.resize(31);
  EXPECT_THROW((void)nf4_quantize(x, 64, codes, absmax), ArgumentError);
}

}  // namespace
}  // namespace shardtune::quant
