// The bf16 tiles with the instructions emulated one lane at a time, so that they are tested on
// machines that lack them; and the instructions themselves where the machine has them.
#include "kernels/attention_bf16.h"

#include <array>
#include <cmath>

#include "core/dtype.h"
#include "tests/kernels/attention_problem.h"

namespace shardtune::kernels {
namespace {

struct EmulatedOps {
  using V = std::array<float, 16>;
  using Pairs = std::array<uint32_t, 16>;

  template <typename Function>
  static V map(const Function& function) {
    V result;
    for (size_t i = 0; i < 16; ++i)
      result[i] = function(i);
    return result;
  }
  static float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
  static float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

  static V load(const float* p) {
    return map([&](size_t i) { return p[i]; });
  }
  static void store(float* p, const V& v) { std::copy(v.begin(), v.end(), p); }
  static V set(float x) {
    return map([&](size_t) { return x; });
  }
  static Pairs load_pairs(const uint32_t* p) {
    Pairs result;
    std::copy_n(p, 16, result.begin());
    return result;
  }
  static Pairs set_pair(uint32_t pair) {
    Pairs result;
    result.fill(pair);
    return result;
  }
  static V dot_pairs(const V& sum, const Pairs& a, const Pairs& b) {
    return map([&](size_t i) { return sum[i] + high(a[i]) * high(b[i]) + low(a[i]) * low(b[i]); });
  }
  static V add(const V& a, const V& b) {
    return map([&](size_t i) { return a[i] + b[i]; });
  }
  static V sub(const V& a, const V& b) {
    return map([&](size_t i) { return a[i] - b[i]; });
  }
  static V mul(const V& a, const V& b) {
    return map([&](size_t i) { return a[i] * b[i]; });
  }
  static V fma(const V& a, const V& b, const V& c) {
    return map([&](size_t i) { return std::fma(a[i], b[i], c[i]); });
  }
  // The second operand when one is NaN, as the instructions do.
  static V max(const V& a, const V& b) {
    return map([&](size_t i) { return a[i] > b[i] ? a[i] : b[i]; });
  }
  static V min(const V& a, const V& b) {
    return map([&](size_t i) { return a[i] < b[i] ? a[i] : b[i]; });
  }
  static V round(const V& a) {
    return map([&](size_t i) { return std::nearbyint(a[i]); });
  }
  static V scale_by_power_of_two(const V& a, const V& n) {
    return map([&](size_t i) {
      return std::isnan(n[i]) ? n[i] : std::ldexp(a[i], static_cast<int>(n[i]));
    });
  }
  static V select(uint32_t bits, const V& yes, const V& no) {
    return map([&](size_t i) { return (bits >> i & 1u) != 0 ? yes[i] : no[i]; });
  }
  static V replace_minus_infinity(const V& a) {
    return map([&](size_t i) { return a[i] == -INFINITY ? 0.0f : a[i]; });
  }
  static void store_pairs(uint32_t* p, const V& even, const V& odd) {
    for (size_t i = 0; i < 16; ++i)
      p[i] = BFloat16(even[i]).bits | static_cast<uint32_t>(BFloat16(odd[i]).bits) << 16;
  }
  static void store_interleaved(uint32_t* p, const uint16_t* even, const uint16_t* odd) {
    for (size_t i = 0; i < 16; ++i)
      p[i] = even[i] | static_cast<uint32_t>(odd[i]) << 16;
  }
  static V widen(const uint16_t* p) {
    return map([&](size_t i) { return std::bit_cast<float>(static_cast<uint32_t>(p[i]) << 16); });
  }
  static float sum(V v) {
    for (size_t half = 8; half > 0; half /= 2)
      for (size_t i = 0; i < half; ++i)
        v[i] += v[i + half];
    return v[0];
  }
  static void transpose_words(const uint16_t* from, int64_t stride, uint32_t* to,
                              int64_t to_stride) {
    for (int64_t r = 0; r < 16; ++r)
      for (int64_t c = 0; c < 16; ++c)
        to[c * to_stride + r] =
            from[r * stride + 2 * c] | static_cast<uint32_t>(from[r * stride + 2 * c + 1]) << 16;
  }
  static void store_bf16(uint16_t* p, const V& low_half, const V& high_half) {
    for (size_t i = 0; i < 16; ++i) {
      p[i] = BFloat16(low_half[i]).bits;
      p[i + 16] = BFloat16(high_half[i]).bits;
    }
  }
};

void emulated_pack_keys(const bf16::PackTask& task) { bf16::Tiles<EmulatedOps>::pack_keys(task); }
void emulated_query_block(const bf16::QueryTask& task) {
  bf16::Tiles<EmulatedOps>::query_block(task);
}
void emulated_backward_head(const bf16::HeadTask& task) {
  bf16::Tiles<EmulatedOps>::backward_head(task);
}
constexpr bf16::TileFunctions kEmulated{&emulated_pack_keys, &emulated_query_block,
                                        &emulated_backward_head};

void check_forward(const AttentionCase& c, const bf16::TileFunctions& functions) {
  const AttentionProblem p(c, DType::kBFloat16), expected = p.in_float32(c);
  bf16::attention(p.forward, functions);
  attention_reference(expected.forward);
  const double v = std::max(largest(p.forward.v), largest(p.forward.prefix_v));
  const double lse_error = probability_error(p, c), error = pair_error(p, c);
  expect_within(
      p.forward.out, expected.forward.out,
      [&](int64_t, double e) { return error * v + 1.01 * kRoundoffBf16 * std::abs(e); }, c.name);
  expect_within(
      p.forward.lse, expected.forward.lse,
      [&](int64_t, double e) { return lse_error + 2 * kRoundoffF32 * std::abs(e); },
      std::string(c.name) + " lse");
}

void check_backward(const AttentionCase& c, const bf16::TileFunctions& functions) {
  const AttentionProblem p(c, DType::kBFloat16);
  AttentionProblem expected = p.in_float32(c);
  bf16::attention(p.forward, functions);
  bf16::attention_backward(p.backward, functions);
  expected.take_forward_results(p);
  attention_backward_reference(expected.backward);
  // p and ds are rounded to bf16: each term of a sum moves by one roundoff. Independent roundings
  // of n terms of size s add up like a random walk, 4 s sqrt(n) u; a key collects the queries of
  // its group, weighted by probabilities that are below 1.
  const double error = pair_error(p, c);
  const double queries =
      std::sqrt(static_cast<double>(c.offsets.back() * c.heads / c.kv_heads)) + 1;
  const double slope = 4 * std::sqrt(static_cast<double>(c.dim)) * p.forward.shape.scale;
  const auto compare = [&](const TensorView& found, const TensorView& wanted, double factor,
                           const char* what) {
    if (found.empty())
      return;
    expect_within(
        found, wanted,
        [&](int64_t, double e) {
          return error * factor + 1.01 * roundoff(found.dtype()) * std::abs(e);
        },
        std::string(c.name) + " " + what);
  };
  compare(p.backward.dq, expected.backward.dq, slope * 4, "dq");
  compare(p.backward.dk, expected.backward.dk, slope * queries, "dk");
  compare(p.backward.dv, expected.backward.dv, queries, "dv");
  compare(p.backward.dprefix_k, expected.backward.dprefix_k, slope * queries, "dprefix_k");
  compare(p.backward.dprefix_v, expected.backward.dprefix_v, queries, "dprefix_v");
}

TEST(AttentionBf16, EmulatedForwardEqualsTheReference) {
  for (const AttentionCase& c : attention_cases())
    check_forward(c, kEmulated);
}

TEST(AttentionBf16, EmulatedBackwardEqualsTheReference) {
  for (const AttentionCase& c : attention_cases())
    check_backward(c, kEmulated);
}

TEST(AttentionBf16, MachineFormEqualsTheReference) {
  if (!has_fast_bfloat16() || bf16::machine_functions() == nullptr)
    GTEST_SKIP() << "this machine has no AVX512-BF16";
  for (const AttentionCase& c : attention_cases()) {
    check_forward(c, *bf16::machine_functions());
    check_backward(c, *bf16::machine_functions());
  }
}

TEST(AttentionBf16, SameBitsAtAnyThreadCount) {
  for (const AttentionCase& c : attention_cases()) {
    expect_same_bits_at_any_thread_count(
        [&] {
          AttentionProblem p(c, DType::kBFloat16);
          bf16::attention(p.forward, kEmulated);
          bf16::attention_backward(p.backward, kEmulated);
          return std::move(p.owned);
        },
        c.name);
  }
}

TEST(AttentionBf16, NanReachesTheOutput) {
  const AttentionCase c{"nan", 1, 1, 8, 0, 0, {0, 70}};
  const AttentionProblem p(c, DType::kBFloat16);
  store_element(p.forward.q, 3, std::nanf(""));
  bf16::attention(p.forward, kEmulated);
  EXPECT_TRUE(std::isnan(load_element(p.forward.out, 0)));
  EXPECT_FALSE(std::isnan(load_element(p.forward.out, 8)));
}

}  // namespace
}  // namespace shardtune::kernels
