#include "quant/double_quant.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/checked.h"
#include "core/parallel_for.h"

namespace shardtune::quant {
namespace {

std::string sha256_prefix(std::span<const float> values) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_Digest(values.data(), values.size_bytes(), digest, &length, EVP_sha256(), nullptr);
  std::string text;
  for (int i = 0; i < 8; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[digest[i] >> 4];
    text += kDigits[digest[i] & 15];
  }
  return text;
}

struct Nested {
  std::vector<uint8_t> codes;
  std::vector<float> nested_absmax;
  bool operator==(const Nested&) const = default;
};

Nested quantize(std::span<const float> absmax, float offset) {
  Nested result{std::vector<uint8_t>(absmax.size()),
                std::vector<float>(ceil_div(std::ssize(absmax), kNestedBlockSize))};
  quantize_absmax(absmax, offset, result.codes, result.nested_absmax);
  return result;
}

std::vector<float> positive_values(size_t n) {
  std::mt19937 generator(3);
  std::gamma_distribution<float> gamma(9.0f, 0.01f);
  std::vector<float> values(n);
  std::generate(values.begin(), values.end(), [&] { return gamma(generator); });
  return values;
}

TEST(DynamicMap, HasThePublishedBytes) {
  EXPECT_EQ(sha256_prefix(dynamic_map(DynamicMapKind::kSigned)), "e732639a65f497b4");
  EXPECT_EQ(sha256_prefix(dynamic_map(DynamicMapKind::kUnsigned)), "305f002cc11278fb");
  EXPECT_EQ(dynamic_map(DynamicMapKind::kSigned)[127], 0.0f);
  EXPECT_EQ(dynamic_map(DynamicMapKind::kSigned)[255], 1.0f);
}

TEST(DoubleQuant, CodesAreTheNearestEntries) {
  const auto& map = dynamic_map(DynamicMapKind::kSigned);
  const std::vector<float> absmax = positive_values(3001);
  const float offset = absmax_offset(absmax);
  const Nested nested = quantize(absmax, offset);
  for (size_t i = 0; i < absmax.size(); ++i) {
    const float value = absmax[i] - offset;
    const double scale = nested.nested_absmax[i / kNestedBlockSize];
    const auto distance = [&](float entry) { return std::fabs(entry * scale - value); };
    const auto best = std::min_element(map.begin(), map.end(),
                                       [&](float a, float b) { return distance(a) < distance(b); });
    ASSERT_EQ(nested.codes[i], best - map.begin()) << i;
  }
}

TEST(DoubleQuant, AMidpointGoesToTheLowerEntry) {
  const auto& map = dynamic_map(DynamicMapKind::kSigned);
  int exact_ties = 0;
  for (size_t m = 0; m < 255; ++m) {
    const double midpoint = (static_cast<double>(map[m]) + map[m + 1]) / 2.0;
    const float value = static_cast<float>(midpoint);
    const Nested nested = quantize(std::vector<float>{1.0f, value}, 0.0f);
    const bool above = static_cast<double>(value) > midpoint;
    EXPECT_EQ(nested.codes[1], m + (above ? 1 : 0)) << m;
    exact_ties += static_cast<double>(value) == midpoint ? 1 : 0;
  }
  EXPECT_GT(exact_ties, 50);
}

TEST(DoubleQuant, EqualAbsmaxComeBackAsTheOffset) {
  const std::vector<float> absmax(700, 0.37f);
  const float offset = absmax_offset(absmax);
  EXPECT_EQ(offset, 0.37f);
  const Nested nested = quantize(absmax, offset);
  EXPECT_EQ(nested.nested_absmax, std::vector<float>(3, 0.0f));
  EXPECT_EQ(dequantize_absmax(nested.codes[0], 0.0f, offset, dynamic_map(DynamicMapKind::kSigned)),
            0.37f);
}

TEST(DoubleQuant, OffsetIsTheFp64MeanRoundedOnce) {
  // In fp32 the small values would vanish beside the first.
  std::vector<float> absmax(1 << 16, 1.0f);
  absmax[0] = 16777216.0f;
  EXPECT_EQ(absmax_offset(absmax), static_cast<float>((16777216.0 + 65535.0) / 65536.0));
  EXPECT_EQ(absmax_offset({}), 0.0f);
}

TEST(DoubleQuant, BitsDoNotDependOnTheNumberOfThreads) {
  const std::vector<float> absmax = positive_values(100003);
  const int before = num_threads();
  set_num_threads(1);
  const Nested expected = quantize(absmax, 0.09f);
  for (const int threads : {2, 3, 8}) {
    set_num_threads(threads);
    EXPECT_EQ(quantize(absmax, 0.09f), expected) << threads;
  }
  set_num_threads(before);
}

TEST(DoubleQuant, WrongSizesAreRefused) {
  std::vector<uint8_t> codes(300);
  std::vector<float> nested(1);
  EXPECT_THROW(quantize_absmax(std::vector<float>(300), 0.0f, codes, nested), ArgumentError);
}

}  // namespace
}  // namespace shardtune::quant
