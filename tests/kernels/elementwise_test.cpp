#include "kernels/elementwise.h"

#include <limits>

#include "kernels/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const std::vector<int64_t> kCounts = {1, 3, 7, 8, 9, 17, 31, 217 * 256};
const std::vector<DType> kFloats = {DType::kFloat32, DType::kBFloat16};
const std::vector<Activation> kActivations = {Activation::kRelu,     Activation::kGelu,
                                              Activation::kGeluTanh, Activation::kSilu,
                                              Activation::kTanh,     Activation::kSigmoid};

TEST(CopyScaled, EqualsScalarArithmeticForEveryPairOfDtypes) {
  for (const int64_t count : kCounts) {
    for (const DType from : kFloats) {
      for (const DType to : kFloats) {
        for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
          const Tensor x = random_tensor({count}, from, 1), y = random_tensor({count}, to, 2);
          const Tensor expected = y.clone();
          for (int64_t i = 0; i < count; ++i) {
            const float value = load_element(x, i) * 0.3f;
            store_element(expected, i,
                          accumulate == Accumulate::kYes ? load_element(y, i) + value : value);
          }
          copy_scaled(x, y, accumulate, 0.3f);
          ASSERT_EQ(0, std::memcmp(y.view().raw(), expected.view().raw(),
                                   static_cast<size_t>(y.num_bytes())));
        }
      }
    }
  }
}

TEST(CopyScaled, RoundsToBf16LikeTheScalarForm) {
  std::vector<float> values = {0.0f,    -0.0f,         1.00390625f,   1.01171875f,
                               3.4e38f, -3.4e38f,      kInfinity,     -kInfinity,
                               1e-40f,  std::nanf(""), -std::nanf("")};
  values.push_back(std::bit_cast<float>(0x7f800001u));  // a NaN whose upper half looks infinite
  const CounterRng rng(5);
  for (uint64_t i = 0; i < 10000; ++i)
    values.push_back(std::bit_cast<float>(rng.bits(i)));
  const auto n = static_cast<int64_t>(values.size());
  const Tensor y(Shape{n}, DType::kBFloat16);
  cast(Tensor::from(values, {n}), y);
  for (int64_t i = 0; i < n; ++i)
    ASSERT_EQ(y.data<BFloat16>()[i].bits, BFloat16(values[static_cast<size_t>(i)]).bits) << i;
}

TEST(CopyScaled, TouchesNothingBehindTheEnd) {
  const Tensor x = random_tensor({5}, DType::kFloat32, 1), y = Tensor::zeros({16}, DType::kFloat32);
  copy_scaled(x, y.view().rows(0, 5), Accumulate::kNo);
  for (int64_t i = 5; i < 16; ++i)
    EXPECT_EQ(y.data<float>()[i], 0.0f);
}

TEST(CopyScaled, RefusesOtherCountsAndDtypes) {
  const Tensor x(Shape{4}, DType::kFloat32), y(Shape{5}, DType::kFloat32);
  EXPECT_THROW(cast(x, y), ArgumentError);
  EXPECT_THROW(cast(x, Tensor(Shape{4}, DType::kInt32)), ArgumentError);
}

TEST(AddBias, AddsTheBiasToEveryRow) {
  for (const DType dtype : kFloats) {
    const Tensor bias = random_tensor({17}, DType::kFloat32, 1),
                 y = random_tensor({5, 17}, dtype, 2);
    const Tensor expected = y.clone();
    for (int64_t i = 0; i < y.numel(); ++i)
      store_element(expected, i, load_element(y, i) + load_element(bias, i % 17));
    add_bias(bias, y);
    EXPECT_EQ(
        0, std::memcmp(y.view().raw(), expected.view().raw(), static_cast<size_t>(y.num_bytes())));
  }
}

TEST(SumRows, EqualsTheSumInFp64) {
  for (const int64_t rows : {0, 1, 17, 512, 1300}) {
    for (const DType dtype : kFloats) {
      const Tensor dy = random_tensor({rows, 67}, dtype, 1);
      const Tensor out = random_tensor({67}, DType::kFloat32, 2), before = out.clone();
      sum_rows(dy, out, Accumulate::kYes);
      for (int64_t j = 0; j < 67; ++j) {
        double sum = load_element(before, j), magnitude = std::abs(sum);
        for (int64_t t = 0; t < rows; ++t) {
          sum += load_element(dy, t * 67 + j);
          magnitude += std::abs(load_element(dy, t * 67 + j));
        }
        // At most rows + chunks additions, each rounding once.
        EXPECT_NEAR(out.data<float>()[j], sum,
                    static_cast<double>(rows + 4) * kRoundoffF32 * magnitude + 1e-37);
      }
    }
  }
}

// Values that exercise saturation, plus normal ones.
Tensor activation_inputs(int64_t count, DType dtype) {
  Tensor x = random_tensor({count}, dtype, 1, 3.0f);
  const std::vector<float> special = {0.0f,  1e-5f,  -1e-5f, 20.0f,  -20.0f,
                                      90.0f, -90.0f, 120.0f, -120.0f};
  for (size_t i = 0; i < special.size() && static_cast<int64_t>(i) < count; ++i)
    store_element(x, static_cast<int64_t>(i), special[i]);
  return x;
}

// An f32 formula of about 8 operations on values of size max(|result|, 1): 16 roundings bound it.
double elementwise_bound(double expected, double magnitude, DType dtype) {
  return 16 * kRoundoffF32 * magnitude + 1.01 * roundoff(dtype) * std::abs(expected) + 1e-36;
}

TEST(Swiglu, ForwardAndBackwardEqualTheReference) {
  for (const int64_t count : kCounts) {
    for (const DType dtype : kFloats) {
      const Tensor gate = activation_inputs(count, dtype), up = random_tensor({count}, dtype, 2);
      const Tensor dout = random_tensor({count}, dtype, 3);
      const Tensor out(Shape{count}, dtype), dgate(Shape{count}, dtype), dup(Shape{count}, dtype);
      const Tensor e_out(Shape{count}, DType::kFloat32), e_dgate(Shape{count}, DType::kFloat32),
          e_dup(Shape{count}, DType::kFloat32);
      swiglu(gate, up, out);
      swiglu_reference(gate, up, e_out);
      swiglu_backward({dout, gate, up, dgate, dup});
      swiglu_backward_reference({dout, gate, up, e_dgate, e_dup});
      expect_within(
          out, e_out, [&](int64_t, double e) { return elementwise_bound(e, std::abs(e), dtype); },
          "out");
      expect_within(
          dup, e_dup, [&](int64_t, double e) { return elementwise_bound(e, std::abs(e), dtype); },
          "dup");
      expect_within(
          dgate, e_dgate,
          [&](int64_t i, double e) {  // silu' is a difference of terms up to 1 + |x| s
            const double terms = std::abs(load_element(dout, i) * load_element(up, i)) *
                                 (1.0 + std::abs(load_element(gate, i)));
            return elementwise_bound(e, terms, dtype);
          },
          "dgate");
    }
  }
}

TEST(Swiglu, BackwardIsTheDerivative) {
  const Tensor gate = random_tensor({33}, DType::kFloat32, 1),
               up = random_tensor({33}, DType::kFloat32, 2);
  const Tensor weights = random_tensor({33}, DType::kFloat32, 3);
  const Tensor out(Shape{33}, DType::kFloat32), dgate(Shape{33}, DType::kFloat32),
      dup(Shape{33}, DType::kFloat32);
  swiglu_backward({weights, gate, up, dgate, dup});
  const auto value = [&] {
    swiglu(gate, up, out);
    return weighted_sum(out, weights);
  };
  // Truncation h^2 = 1e-4 x third derivative / 6; roundoff 1e-6 / 2h.
  for (int64_t i = 0; i < 33; ++i) {
    EXPECT_NEAR(central_difference(gate, i, 1e-2f, value), dgate.data<float>()[i], 5e-4) << i;
    EXPECT_NEAR(central_difference(up, i, 1e-2f, value), dup.data<float>()[i], 5e-4) << i;
  }
}

TEST(Activate, ForwardAndBackwardEqualTheFormulasInFp64) {
  for (const Activation activation : kActivations) {
    for (const DType dtype : kFloats) {
      const int64_t count = 1031;
      const Tensor x = activation_inputs(count, dtype), dy = random_tensor({count}, dtype, 2);
      const Tensor y(Shape{count}, dtype), dx(Shape{count}, dtype);
      activate(activation, x, y);
      activate_backward(activation, x, dy, dx, Accumulate::kNo);
      for (int64_t i = 0; i < count; ++i) {
        const double value = load_element(x, i);
        const double f = activation_value(activation, value);
        const double g = load_element(dy, i) * activation_derivative(activation, value);
        // An error of the exponent u costs |u| roundings; |u| <= |x| + |x|^3 / 10 for all of them.
        const double size = std::min(std::abs(value), 12.0);
        const double input_size = 1.0 + size + 0.1 * size * size * size;
        ASSERT_NEAR(load_element(y, i), f, elementwise_bound(f, std::abs(f) * input_size, dtype))
            << "activation " << static_cast<int>(activation) << " at " << value;
        ASSERT_NEAR(load_element(dx, i), g,
                    elementwise_bound(g, std::abs(load_element(dy, i)) * input_size, dtype))
            << "derivative " << static_cast<int>(activation) << " at " << value;
      }
    }
  }
}

TEST(Activate, BackwardIsTheDerivativeAndAdds) {
  for (const Activation activation : kActivations) {
    const Tensor x = random_tensor({40}, DType::kFloat32, 7);
    const Tensor weights = random_tensor({40}, DType::kFloat32, 8);
    const Tensor y(Shape{40}, DType::kFloat32), dx = Tensor::zeros({40}, DType::kFloat32);
    std::fill_n(dx.data<float>(), 40, 2.0f);
    activate_backward(activation, x, weights, dx, Accumulate::kYes);
    const auto value = [&] {
      activate(activation, x, y);
      return weighted_sum(y, weights);
    };
    for (int64_t i = 0; i < 40; ++i) {
      if (activation == Activation::kRelu && std::abs(x.data<float>()[i]) < 2e-2f)
        continue;  // across the kink the difference quotient is no derivative
      EXPECT_NEAR(central_difference(x, i, 1e-2f, value), dx.data<float>()[i] - 2.0f, 5e-4)
          << static_cast<int>(activation) << " at " << x.data<float>()[i];
    }
  }
}

TEST(Activate, NanStaysNan) {
  const Tensor x(Shape{3}, DType::kFloat32), y(Shape{3}, DType::kFloat32);
  std::fill_n(x.data<float>(), 3, std::nanf(""));
  for (const Activation activation : kActivations) {
    activate(activation, x, y);
    EXPECT_TRUE(std::isnan(y.data<float>()[2])) << static_cast<int>(activation);
  }
  swiglu(x, x, y);
  EXPECT_TRUE(std::isnan(y.data<float>()[0]));
}

struct DropoutCase {
  std::vector<uint64_t> samples;
  std::vector<int32_t> indices;
  DropoutKey key(uint64_t seed) const { return {seed, samples, indices}; }
};

DropoutCase two_samples(int64_t first, int64_t second) {
  DropoutCase result;
  for (int64_t t = 0; t < first + second; ++t) {
    result.samples.push_back(t < first ? 11 : (uint64_t{1} << 40) + 7);
    result.indices.push_back(static_cast<int32_t>(t < first ? t : t - first));
  }
  return result;
}

TEST(Dropout, KeepsTheExpectedShareAndScales) {
  const DropoutCase tokens = two_samples(300, 200);
  const Tensor x(Shape{500, 101}, DType::kFloat32), y(Shape{500, 101}, DType::kFloat32);
  std::fill_n(x.data<float>(), x.numel(), 1.0f);
  dropout(x, 0.3f, tokens.key(9), y, Accumulate::kNo);
  double kept = 0.0;
  for (int64_t i = 0; i < y.numel(); ++i) {
    ASSERT_TRUE(y.data<float>()[i] == 0.0f || y.data<float>()[i] == 1.0f / (1.0f - 0.3f));
    kept += y.data<float>()[i] != 0.0f;
  }
  const double n = static_cast<double>(y.numel());
  EXPECT_NEAR(kept / n, 0.7, 5 * std::sqrt(0.21 / n));  // five standard deviations
}

TEST(Dropout, MaskBelongsToTheTokenOfTheSampleNotToItsPlaceInTheBatch) {
  const Tensor x = random_tensor({30, 18}, DType::kFloat32, 1);
  const Tensor packed(Shape{30, 18}, DType::kFloat32), alone(Shape{18, 18}, DType::kFloat32);
  const DropoutCase both = two_samples(12, 18);
  dropout(x, 0.5f, both.key(9), packed, Accumulate::kNo);
  const DropoutCase second = {{both.samples.begin() + 12, both.samples.end()},
                              {both.indices.begin() + 12, both.indices.end()}};
  dropout(x.view().rows(12, 30), 0.5f, second.key(9), alone, Accumulate::kNo);
  EXPECT_EQ(0, std::memcmp(packed.view().rows(12, 30).raw(), alone.view().raw(),
                           static_cast<size_t>(alone.num_bytes())));
  const Tensor other(Shape{18, 18}, DType::kFloat32);
  dropout(x.view().rows(12, 30), 0.5f, second.key(10), other, Accumulate::kNo);
  EXPECT_NE(0, std::memcmp(other.view().raw(), alone.view().raw(),
                           static_cast<size_t>(alone.num_bytes())));
}

TEST(Dropout, DrawsTheWordsOfPhilox) {
  const DropoutCase tokens = two_samples(2, 3);
  for (const int64_t width : {1, 5, 31, 32, 77}) {
    const Tensor x(Shape{5, width}, DType::kFloat32), y(Shape{5, width}, DType::kFloat32);
    std::fill_n(x.data<float>(), x.numel(), 1.0f);
    const uint64_t seed = 0xfedcba9876543210u;
    dropout(x, 0.5f, tokens.key(seed), y, Accumulate::kNo);
    for (int64_t i = 0; i < x.numel(); ++i) {
      const auto t = static_cast<size_t>(i / width), j = static_cast<size_t>(i % width);
      const auto words =
          philox(seed, {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(tokens.indices[t]),
                        static_cast<uint32_t>(tokens.samples[t]),
                        static_cast<uint32_t>(tokens.samples[t] >> 32)});
      ASSERT_EQ(y.data<float>()[i], words[j % 4] >> 31 == 1 ? 2.0f : 0.0f) << i << " of " << width;
    }
  }
}

TEST(Dropout, ZeroKeepsEverythingAndOneIsRefused) {
  const DropoutCase tokens = two_samples(2, 1);
  const Tensor x = random_tensor({3, 5}, DType::kBFloat16, 1), y(Shape{3, 5}, DType::kBFloat16);
  dropout(x, 0.0f, tokens.key(1), y, Accumulate::kNo);
  EXPECT_EQ(0, std::memcmp(x.view().raw(), y.view().raw(), static_cast<size_t>(x.num_bytes())));
  EXPECT_THROW(dropout(x, 1.0f, tokens.key(1), y, Accumulate::kNo), ArgumentError);
  EXPECT_THROW(dropout(x, std::nanf(""), tokens.key(1), y, Accumulate::kNo), ArgumentError);
}

TEST(Dropout, DropsInfinitiesWithoutANan) {
  const DropoutCase tokens = two_samples(1, 0);
  const Tensor x(Shape{1, 64}, DType::kFloat32), y(Shape{1, 64}, DType::kFloat32);
  std::fill_n(x.data<float>(), 64, kInfinity);
  dropout(x, 0.5f, tokens.key(1), y, Accumulate::kNo);
  for (int64_t i = 0; i < 64; ++i)
    EXPECT_FALSE(std::isnan(y.data<float>()[i]));
}

TEST(SumSquaresPerChunk, EqualsTheSumInFp64) {
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{4097}, int64_t{10001}}) {
    const Tensor x = random_tensor({count}, DType::kFloat32, 1);
    std::vector<double> chunks(static_cast<size_t>(ceil_div(count, kShardGranule)));
    sum_squares_per_chunk(x.span<const float>(), chunks);
    for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
      double sum = 0.0;
      for (int64_t i = static_cast<int64_t>(chunk) * 4096;
           i < std::min(count, static_cast<int64_t>(chunk + 1) * 4096); ++i)
        sum += double{x.data<float>()[i]} * x.data<float>()[i];
      EXPECT_NEAR(chunks[chunk], sum, 4096 * 0x1p-53 * sum);
    }
  }
  std::vector<double> none;
  EXPECT_THROW(sum_squares_per_chunk(std::vector<float>(1), none), ArgumentError);
}

TEST(FindNonFinite, NamesTheFirst) {
  for (const DType dtype : kFloats) {
    const Tensor x = random_tensor({100000}, dtype, 1);
    EXPECT_FALSE(find_non_finite(x).has_value());
    store_element(x, 99999, std::nanf(""));
    EXPECT_EQ(find_non_finite(x), 99999);
    store_element(x, 70001, -kInfinity);
    EXPECT_EQ(find_non_finite(x), 70001);
    store_element(x, 3, kInfinity);
    EXPECT_EQ(find_non_finite(x), 3);
    store_element(x, 3, 3e38f);
    store_element(x, 4, 3e38f);  // their sum would overflow
    EXPECT_EQ(find_non_finite(x), 70001);
  }
}

TEST(Elementwise, SameBitsAtAnyThreadCount) {
  const int64_t rows = 301, width = 219;
  for (const DType dtype : kFloats) {
    const Tensor x = random_tensor({rows, width}, dtype, 1),
                 z = random_tensor({rows, width}, dtype, 2);
    const Tensor bias = random_tensor({width}, DType::kFloat32, 3);
    const DropoutCase tokens = two_samples(200, 101);
    expect_same_bits_at_any_thread_count(
        [&] {
          std::vector<Tensor> outputs;
          for (int i = 0; i < 8; ++i)
            outputs.push_back(Tensor::zeros({rows, width}, dtype));
          outputs.emplace_back(Shape{width}, DType::kFloat32);
          swiglu(x, z, outputs[0]);
          swiglu_backward({z, x, z, outputs[1], outputs[2]});
          copy_scaled(x, outputs[3], Accumulate::kYes, 0.7f);
          add_bias(bias, outputs[3]);
          dropout(x, 0.2f, tokens.key(3), outputs[4], Accumulate::kNo);
          activate(Activation::kGelu, x, outputs[5]);
          activate_backward(Activation::kGeluTanh, x, z, outputs[6], Accumulate::kNo);
          activate(Activation::kTanh, x, outputs[7]);
          sum_rows(x, outputs[8], Accumulate::kNo);
          return outputs;
        },
        "elementwise");
  }
}

}  // namespace
}  // namespace shardtune::kernels
