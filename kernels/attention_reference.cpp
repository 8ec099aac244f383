// One query at a time, scores of its whole key row in memory, sums in fp64: slow and plain.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

namespace {
// The keys that one query sees: the prefix, then tokens [first, last] of its sample.
struct Row {
  int64_t query, head, kv_head, num_prefix, first, last;
  int64_t num_keys() const { return num_prefix + last - first + 1; }
};

template <typename Visit>
void for_each_row(const AttentionForward& args, const Visit& visit) {
  const int64_t prefix = args.prefix_k.empty() ? 0 : args.prefix_k.dim(0);
  for (size_t s = 0; s + 1 < args.sample_offsets.size(); ++s) {
    const int64_t begin = args.sample_offsets[s], end = args.sample_offsets[s + 1];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first =
          args.shape.window > 0 ? std::max(begin, i - args.shape.window + 1) : begin;
      for (int64_t h = 0; h < args.shape.num_heads; ++h)
        visit(Row{i, h, h * args.shape.num_kv_heads / args.shape.num_heads, prefix, first, i});
    }
  }
}

// Element d of key or value number j of the row, from the prefix or from the tokens.
struct KeyElement {
  const TensorView* view;
  int64_t index;
};
KeyElement key_element(const AttentionShape& shape, const Row& row, int64_t j,
                       const TensorView& prefix, const TensorView& tokens) {
  const bool in_prefix = j < row.num_prefix;
  const int64_t token = in_prefix ? j : row.first + j - row.num_prefix;
  return {in_prefix ? &prefix : &tokens,
          (token * shape.num_kv_heads + row.kv_head) * shape.head_dim};
}

std::vector<double> scores_of(const AttentionForward& args, const Row& row) {
  const int64_t dim = args.shape.head_dim;
  std::vector<double> scores(static_cast<size_t>(row.num_keys()));
  for (int64_t j = 0; j < row.num_keys(); ++j) {
    const KeyElement key = key_element(args.shape, row, j, args.prefix_k, args.k);
    double sum = 0.0;
    for (int64_t d = 0; d < dim; ++d)
      sum += double{load_element(args.q, (row.query * args.shape.num_heads + row.head) * dim + d)} *
             load_element(*key.view, key.index + d);
    scores[static_cast<size_t>(j)] = sum * args.shape.scale;
  }
  return scores;
}
}  // namespace

void attention_reference(const AttentionForward& args) {
  const int64_t dim = args.shape.head_dim;
  for_each_row(args, [&](const Row& row) {
    std::vector<double> scores = scores_of(args, row);
    double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (const double score : scores)
      max = std::max(max, score);
    for (double& score : scores)
      sum += score = std::exp(score - max);
    const int64_t out_row = row.query * args.shape.num_heads + row.head;
    for (int64_t d = 0; d < dim; ++d) {
      double value = 0.0;
      for (int64_t j = 0; j < row.num_keys(); ++j) {
        const KeyElement v = key_element(args.shape, row, j, args.prefix_v, args.v);
        value += scores[static_cast<size_t>(j)] * load_element(*v.view, v.index + d);
      }
      store_element(args.out, out_row * dim + d, static_cast<float>(value / sum));
    }
    if (!args.lse.empty())
      store_element(args.lse, out_row, static_cast<float>(max + std::log(sum)));
  });
}

namespace {
// Gradients of all keys and values in fp64: tokens and prefix, [rows, Hk * D] each.
struct KeyGradients {
  std::vector<double> dk, dv, dprefix_k, dprefix_v;
};

void add_row_gradients(const AttentionBackward& args, const Row& row, KeyGradients& sums) {
  const AttentionForward& forward = args.forward;
  const int64_t dim = forward.shape.head_dim;
  const int64_t base = (row.query * forward.shape.num_heads + row.head) * dim;
  double out_dot = 0.0;
  for (int64_t d = 0; d < dim; ++d)
    out_dot += double{load_element(args.dout, base + d)} * load_element(forward.out, base + d);
  const std::vector<double> scores = scores_of(forward, row);
  const double lse = load_element(forward.lse, base / dim);
  std::vector<double> dq(static_cast<size_t>(dim), 0.0);
  for (int64_t j = 0; j < row.num_keys(); ++j) {
    const double p = std::exp(scores[static_cast<size_t>(j)] - lse);
    const KeyElement v = key_element(forward.shape, row, j, forward.prefix_v, forward.v);
    const KeyElement k = key_element(forward.shape, row, j, forward.prefix_k, forward.k);
    std::vector<double>& dk = j < row.num_prefix ? sums.dprefix_k : sums.dk;
    std::vector<double>& dv = j < row.num_prefix ? sums.dprefix_v : sums.dv;
    double dp = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      const double dout = load_element(args.dout, base + d);
      dp += dout * load_element(*v.view, v.index + d);
      dv[static_cast<size_t>(v.index + d)] += p * dout;
    }
    const double ds = p * (dp - out_dot) * forward.shape.scale;
    for (int64_t d = 0; d < dim; ++d) {
      dq[static_cast<size_t>(d)] += ds * load_element(*k.view, k.index + d);
      dk[static_cast<size_t>(k.index + d)] += ds * load_element(forward.q, base + d);
    }
  }
  for (int64_t d = 0; d < dim; ++d)
    store_element(args.dq, base + d, static_cast<float>(dq[static_cast<size_t>(d)]));
}

void store_all(const std::vector<double>& values, const TensorView& out) {
  if (out.empty())
    return;
  for (size_t i = 0; i < values.size(); ++i)
    store_element(out, static_cast<int64_t>(i), static_cast<float>(values[i]));
}
}  // namespace

void attention_backward_reference(const AttentionBackward& args) {
  const auto zeros = [](const TensorView& x) {
    return std::vector<double>(x.empty() ? 0 : static_cast<size_t>(x.numel()), 0.0);
  };
  const TensorView& prefix = args.forward.prefix_k;
  KeyGradients sums{zeros(args.dk), zeros(args.dv), zeros(prefix), zeros(prefix)};
  for_each_row(args.forward, [&](const Row& row) { add_row_gradients(args, row, sums); });
  store_all(sums.dk, args.dk);
  store_all(sums.dv, args.dv);
  store_all(sums.dprefix_k, args.dprefix_k);
  store_all(sums.dprefix_v, args.dprefix_v);
}

}  // namespace shardtune::kernels
