// Whole tensors against bitsandbytes 0.50.2 (tests/golden/bitsandbytes).
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "quant/double_quant.h"
#include "quant/int8.h"
#include "quant/nf4.h"
#include "tests/quant/golden_file.h"

namespace shardtune::quant {
namespace {

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

const FourBitCodebook& codebook_of(const std::string& name) {
  return name.find("fp4/") == std::string::npos ? nf4_codebook() : fp4_codebook();
}

Quantized quantize(const std::vector<float>& x, int64_t block_size,
                   const FourBitCodebook& codebook) {
  const int64_t n = std::ssize(x);
  Quantized result{std::vector<uint8_t>(ceil_div(n, 2)),
                   std::vector<float>(ceil_div(n, block_size))};
  EXPECT_EQ(nf4_quantize(x, block_size, result.codes, result.absmax, codebook), std::nullopt);
  return result;
}

std::vector<uint32_t> bits(const std::vector<float>& values) {
  std::vector<uint32_t> result;
  for (const float value : values)
    result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}

int64_t ulps_between(float a, float b) {
  return std::abs(std::bit_cast<int32_t>(a) - std::bit_cast<int32_t>(b));
}

TEST(BitsandbytesGolden, FourBitCodesAndAbsmaxAreIdentical) {
  int cases = 0;
  for (const auto& [name, x] : golden()) {
    if (!(name.starts_with("nf4/") || name.starts_with("fp4/")) || !name.ends_with("/x"))
      continue;
    const std::string stem = name.substr(0, name.size() - 2);
    const int64_t block_size = std::stoll(stem.substr(stem.rfind('/') + 1));
    const Quantized ours = quantize(x.floats(), block_size, codebook_of(name));
    EXPECT_EQ(ours.codes, golden().at(stem + "/codes").as<uint8_t>()) << stem;
    EXPECT_EQ(bits(ours.absmax), bits(golden().at(stem + "/absmax").floats())) << stem;
    ++cases;
  }
  EXPECT_EQ(cases, 22 + 5);
}

void expect_dequantized(const std::string& stem) {
  const auto codes = golden().at(stem + "/codes").as<uint8_t>();
  const auto absmax = golden().at(stem + "/absmax").floats();
  const Nf4View view{codes.data(), {.absmax = absmax.data()}, 64, &codebook_of(stem)};
  const auto expected = golden().at(stem + "/dequantized").floats();
  const Tensor out({std::ssize(expected)}, DType::kFloat32);
  nf4_dequantize(view, 0, out);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), out.data<float>()));
  const auto expected_bf16 = golden().at(stem + "/dequantized_bf16").as<BFloat16>();
  const Tensor out_bf16({std::ssize(expected)}, DType::kBFloat16);
  nf4_dequantize(view, 0, out_bf16);
  for (size_t i = 0; i < expected_bf16.size(); ++i)
    ASSERT_EQ(out_bf16.data<BFloat16>()[i].bits, expected_bf16[i].bits) << i;
}

TEST(BitsandbytesGolden, DequantizedValuesAreIdentical) {
  expect_dequantized("nf4/ties/64");
  expect_dequantized("fp4/ties/64");
}

TEST(BitsandbytesGolden, DynamicMapsAreIdentical) {
  for (const auto& [kind, name] : {std::pair{DynamicMapKind::kSigned, "map/signed"},
                                   std::pair{DynamicMapKind::kUnsigned, "map/unsigned"}}) {
    const auto expected = golden().at(name).floats();
    const auto& map = dynamic_map(kind);
    EXPECT_TRUE(std::equal(map.begin(), map.end(), expected.begin(), expected.end())) << name;
  }
}

// Codes that differ, none by more than one index.
int64_t count_neighbours(const std::vector<uint8_t>& ours, const std::vector<uint8_t>& theirs) {
  int64_t different = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_LE(std::abs(ours[i] - theirs[i]), 1) << i;
    different += ours[i] != theirs[i] ? 1 : 0;
  }
  return different;
}

TEST(BitsandbytesGolden, NestedCodesGivenTheirOffsetAreNearlyAllEqual) {
  const auto absmax = golden().at("nested/values/absmax").floats();
  const auto theirs = golden().at("nested/values/absmax_codes").as<uint8_t>();
  const float offset = golden().at("nested/values/offset").floats()[0];
  std::vector<uint8_t> codes(absmax.size());
  std::vector<float> nested(ceil_div(std::ssize(absmax), kNestedBlockSize));
  quantize_absmax(absmax, offset, codes, nested);
  EXPECT_EQ(bits(nested), bits(golden().at("nested/values/nested_absmax").floats()));
  EXPECT_LE(count_neighbours(codes, theirs), std::ssize(codes) * 3 / 1000);
  const auto expected = golden().at("nested/values/dequantized").floats();
  for (size_t i = 0; i < theirs.size(); ++i) {
    EXPECT_EQ(dequantize_absmax(theirs[i], nested[i / kNestedBlockSize], offset,
                                dynamic_map(DynamicMapKind::kSigned)),
              expected[i]);
  }
}

TEST(BitsandbytesGolden, OffsetIsWithinTwoUlp) {
  const auto absmax = golden().at("nested/values/absmax").floats();
  EXPECT_LE(ulps_between(absmax_offset(absmax), golden().at("nested/values/offset").floats()[0]),
            2);
}

void expect_doubly_quantized(const std::string& stem) {
  const Quantized ours = quantize(golden().at(stem + "/x").floats(), 32, codebook_of(stem));
  EXPECT_EQ(ours.codes, golden().at(stem + "/codes").as<uint8_t>());
  const float their_offset = golden().at(stem + "/offset").floats()[0];
  EXPECT_LE(ulps_between(absmax_offset(ours.absmax), their_offset), 2);
  std::vector<uint8_t> codes(ours.absmax.size());
  std::vector<float> nested(ceil_div(std::ssize(ours.absmax), kNestedBlockSize));
  quantize_absmax(ours.absmax, their_offset, codes, nested);
  EXPECT_EQ(bits(nested), bits(golden().at(stem + "/nested_absmax").floats()));
  // The share of the large case says nothing about 283 codes; two near midpoints may differ.
  EXPECT_LE(count_neighbours(codes, golden().at(stem + "/absmax_codes").as<uint8_t>()), 2);
}

TEST(BitsandbytesGolden, DoublyQuantizedWeightsAgree) {
  expect_doubly_quantized("nested/weight/32");
  expect_doubly_quantized("nested/fp4/32");
}

TEST(BitsandbytesGolden, Int8RowsAreIdenticalForTheSameValues) {
  for (const std::string stem : {"int8/fp16", "int8/fp32"}) {
    const GoldenTensor& tensor = golden().at(stem + "/x");
    const auto x = tensor.floats();
    std::vector<int8_t> codes(x.size());
    std::vector<float> absmax(static_cast<size_t>(tensor.shape[0]));
    ASSERT_EQ(int8_quantize_rows(x, tensor.shape[1], codes, absmax), std::nullopt);
    EXPECT_EQ(codes, golden().at(stem + "/codes").as<int8_t>()) << stem;
    EXPECT_EQ(bits(absmax), bits(golden().at(stem + "/absmax").floats())) << stem;
  }
}

}  // namespace
}  // namespace shardtune::quant
