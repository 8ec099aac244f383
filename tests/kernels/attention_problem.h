// Attention problems shared by the tests of its f32 and bf16 forms.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {

struct AttentionCase {
  const char* name;
  int64_t heads, kv_heads, dim, prefix, window;
  std::vector<int32_t> offsets;
};

/// Odd sizes, block borders, groups, prefixes and windows.
inline const std::vector<AttentionCase>& attention_cases() {
  static const std::vector<AttentionCase> cases = {
      {"one token", 1, 1, 8, 0, 0, {0, 1}},
      {"one token, groups and prefix", 4, 2, 16, 3, 0, {0, 1}},
      {"odd head size", 3, 1, 17, 0, 0, {0, 5, 70}},
      {"head size 1", 2, 2, 1, 0, 0, {0, 9}},
      {"empty sample between", 2, 1, 24, 0, 0, {0, 0, 65, 65, 66}},
      {"block borders", 2, 2, 32, 0, 0, {0, 63, 127, 192, 256, 257}},
      {"groups of three, several samples", 9, 3, 64, 0, 0, {0, 130, 131, 200}},
      {"prefix over a block border", 4, 2, 40, 67, 0, {0, 33, 100}},
      {"window 1", 2, 1, 16, 0, 1, {0, 70}},
      {"window inside a block", 2, 1, 16, 0, 7, {0, 200, 210}},
      {"window over blocks and prefix", 4, 1, 64, 5, 100, {0, 333}},
      {"window longer than the sample", 2, 1, 16, 2, 1000, {0, 90}},
      {"head size 128", 2, 1, 128, 0, 0, {0, 150}},
  };
  return cases;
}

struct AttentionProblem {
  AttentionForward forward;
  AttentionBackward backward;
  std::vector<Tensor> owned;

  AttentionProblem(const AttentionCase& c, DType dtype) {
    const int64_t tokens = c.offsets.back();
    forward.shape = {c.heads, c.kv_heads, c.dim, 1.0f / std::sqrt(static_cast<float>(c.dim)),
                     c.window};
    forward.sample_offsets = c.offsets;
    const Shape wide{tokens, c.heads * c.dim}, narrow{tokens, c.kv_heads * c.dim};
    const Shape prefix{c.prefix, c.kv_heads * c.dim};
    uint64_t seed = 1;
    const auto random = [&](Shape shape) { return add(random_tensor(shape, dtype, seed++)); };
    forward.q = random(wide);
    forward.k = random(narrow);
    forward.v = random(narrow);
    backward.dout = random(wide);
    if (c.prefix > 0) {
      forward.prefix_k = random(prefix);
      forward.prefix_v = random(prefix);
      backward.dprefix_k = add(Tensor(prefix, DType::kFloat32));
      backward.dprefix_v = add(Tensor(prefix, DType::kFloat32));
    }
    forward.out = add(Tensor(wide, dtype));
    forward.lse = add(Tensor(Shape{tokens, c.heads}, DType::kFloat32));
    backward.dq = add(Tensor(wide, dtype));
    backward.dk = add(Tensor(narrow, dtype));
    backward.dv = add(Tensor(narrow, dtype));
    backward.forward = forward;
  }
  TensorView add(Tensor tensor) {
    owned.push_back(std::move(tensor));
    return owned.back();
  }
  // The same inputs as f32, with outputs of their own.
  AttentionProblem in_float32(const AttentionCase& c) const {
    AttentionProblem wide(c, DType::kFloat32);
    const auto copy = [](const TensorView& from, const TensorView& to) {
      for (int64_t i = 0; !from.empty() && i < from.numel(); ++i)
        store_element(to, i, load_element(from, i));
    };
    copy(forward.q, wide.forward.q);
    copy(forward.k, wide.forward.k);
    copy(forward.v, wide.forward.v);
    copy(forward.prefix_k, wide.forward.prefix_k);
    copy(forward.prefix_v, wide.forward.prefix_v);
    copy(backward.dout, wide.backward.dout);
    return wide;
  }
  // Lets a backward pass start from another's forward results.
  void take_forward_results(const AttentionProblem& other) {
    for (int64_t i = 0; i < other.forward.out.numel(); ++i)
      store_element(forward.out, i, load_element(other.forward.out, i));
    for (int64_t i = 0; i < other.forward.lse.numel(); ++i)
      store_element(forward.lse, i, load_element(other.forward.lse, i));
  }
};

inline double largest(const TensorView& x) {
  double result = 0.0;
  for (int64_t i = 0; !x.empty() && i < x.numel(); ++i)
    result = std::max(result, std::abs(double{load_element(x, i)}));
  return result;
}

// Relative error of a probability: a score is a sum of D products, rounded D times (a random walk;
// 4 standard deviations), and exp turns its absolute error into a relative one; n terms are summed.
inline double probability_error(const AttentionProblem& p, const AttentionCase& c) {
  const double u = kRoundoffF32, dim = static_cast<double>(c.dim);
  const double score = dim * largest(p.forward.q) * largest(p.forward.k) * p.forward.shape.scale;
  const double terms = static_cast<double>(c.offsets.back() + c.prefix);
  return 4 * u * (std::sqrt(dim + 4) * score / std::sqrt(dim) + std::sqrt(terms) + 16);
}

// The bf16 form that machines with bf16 instructions take rounds a probability to bf16 before it
// multiplies; its rows sum to 1, so a weighted sum moves by at most one roundoff of the largest
// value.
inline double pair_error(const AttentionProblem& p, const AttentionCase& c) {
  return probability_error(p, c) + kRoundoffBf16;
}

// Of what kernels::attention chooses on this machine.
inline double chosen_form_error(const AttentionProblem& p, const AttentionCase& c) {
  const bool pairs = p.forward.q.dtype() == DType::kBFloat16 && has_fast_bfloat16();
  return pairs ? pair_error(p, c) : probability_error(p, c);
}

}  // namespace shardtune::kernels
