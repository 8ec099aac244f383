#include "kernels/attention_tasks.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

using cpu::kKeyBlock;
using cpu::kQueryBlock;

void check_attention_shape(const AttentionShape& shape) {
  if (shape.num_heads <= 0 || shape.num_kv_heads <= 0 || shape.head_dim <= 0 || shape.window < 0 ||
      shape.num_heads % shape.num_kv_heads != 0)
    throw ArgumentError("attention: shape: expected query heads a multiple of K/V heads, found " +
                        std::to_string(shape.num_heads) + " and " +
                        std::to_string(shape.num_kv_heads) + ", head_dim " +
                        std::to_string(shape.head_dim) + ", window " +
                        std::to_string(shape.window) + ". This is a bug of the caller.");
}

namespace {
void check_offsets(std::span<const int32_t> offsets, int64_t tokens) {
  bool good = !offsets.empty() && offsets.front() == 0 && offsets.back() == tokens;
  for (size_t s = 0; good && s + 1 < offsets.size(); ++s)
    good = offsets[s] <= offsets[s + 1];
  if (!good)
    throw ArgumentError("attention: sample_offsets: expected to rise from 0 to " +
                        std::to_string(tokens) + ". This is a bug of the caller.");
}

}  // namespace

void check_attention(const AttentionForward& args) {
  const AttentionShape& shape = args.shape;
  check_attention_shape(shape);
  if (args.q.shape().ndim() != 2)
    fail_argument("attention", "q", args.q, "a matrix");
  const int64_t tokens = args.q.dim(0);
  const int64_t q_width = shape.num_heads * shape.head_dim;
  const int64_t kv_width = shape.num_kv_heads * shape.head_dim;
  check_matrix("attention", "q", args.q, tokens, q_width);
  check_matrix("attention", "k", args.k, tokens, kv_width);
  check_matrix("attention", "v", args.v, tokens, kv_width);
  check_matrix("attention", "out", args.out, tokens, q_width);
  for (const TensorView* view : {&args.k, &args.v, &args.out})
    check_same_dtype("attention", "k, v, out", *view, args.q.dtype());
  if (!args.prefix_k.empty()) {
    const int64_t rows = args.prefix_k.dim(0);
    check_matrix("attention", "prefix_k", args.prefix_k, rows, kv_width);
    check_matrix("attention", "prefix_v", args.prefix_v, rows, kv_width);
    check_same_dtype("attention", "prefix_k", args.prefix_k, args.q.dtype());
    check_same_dtype("attention", "prefix_v", args.prefix_v, args.q.dtype());
  }
  if (!args.lse.empty())
    check_float32("attention", "lse", args.lse, tokens * shape.num_heads);
  check_offsets(args.sample_offsets, tokens);
}

void check_attention_backward(const AttentionBackward& args) {
  const AttentionForward& forward = args.forward;
  check_attention(forward);
  const int64_t tokens = forward.q.dim(0), q_width = forward.q.dim(1), kv_width = forward.k.dim(1);
  check_float32("attention_backward", "lse", forward.lse, tokens * forward.shape.num_heads);
  check_matrix("attention_backward", "dout", args.dout, tokens, q_width);
  check_matrix("attention_backward", "dq", args.dq, tokens, q_width);
  check_matrix("attention_backward", "dk", args.dk, tokens, kv_width);
  check_matrix("attention_backward", "dv", args.dv, tokens, kv_width);
  for (const TensorView* view : {&args.dout, &args.dq, &args.dk, &args.dv})
    check_same_dtype("attention_backward", "dout, dq, dk, dv", *view, forward.q.dtype());
  for (const TensorView* view : {&args.dprefix_k, &args.dprefix_v}) {
    if (!view->empty())
      check_float32("attention_backward", "dprefix", *view,
                    forward.prefix_k.empty() ? 0 : forward.prefix_k.numel());
  }
}

namespace {
// The samples that have tokens, with their packed blocks behind the prefix's.
std::vector<cpu::SampleRange> sample_ranges(const AttentionForward& args, int64_t prefix_blocks) {
  std::vector<cpu::SampleRange> samples;
  int64_t block = prefix_blocks;
  for (size_t s = 0; s + 1 < args.sample_offsets.size(); ++s) {
    const cpu::SampleRange sample{args.sample_offsets[s], args.sample_offsets[s + 1], block};
    if (sample.length() == 0)
      continue;
    samples.push_back(sample);
    block += ceil_div(sample.length(), kKeyBlock);
  }
  return samples;
}
}  // namespace

PackedAttention plan_packing(const AttentionForward& args, int64_t tiles, DType dtype) {
  PackedAttention packed;
  cpu::PackedKeys& keys = packed.keys;
  keys.num_kv_heads = args.shape.num_kv_heads;
  keys.padded_dim = round_up(args.shape.head_dim, cpu::kColumnMultiple);
  keys.tiles = tiles;
  keys.tile_floats = keys.padded_dim * kKeyBlock * size_of(dtype) / size_of(DType::kFloat32);
  keys.num_prefix = args.prefix_k.empty() ? 0 : args.prefix_k.dim(0);
  packed.samples = sample_ranges(args, keys.num_prefix_blocks());
  for (int64_t row = 0; row < keys.num_prefix; row += kKeyBlock)
    packed.blocks.push_back({args.prefix_k, args.prefix_v, row,
                             std::min(keys.num_prefix, row + kKeyBlock), row / kKeyBlock});
  for (const cpu::SampleRange& sample : packed.samples)
    for (int64_t token = sample.begin; token < sample.end; token += kKeyBlock)
      packed.blocks.push_back({args.k, args.v, token, std::min(sample.end, token + kKeyBlock),
                               sample.first_block + (token - sample.begin) / kKeyBlock});
  packed.storage = Tensor(Shape{static_cast<int64_t>(packed.blocks.size()) * keys.num_kv_heads,
                                keys.tiles, keys.tile_floats},
                          DType::kFloat32);
  keys.data = packed.storage.data<float>();
  return packed;
}

int64_t longest_sample(const PackedAttention& packed) {
  int64_t longest = 0;
  for (const cpu::SampleRange& sample : packed.samples)
    longest = std::max(longest, sample.length());
  return longest;
}

std::vector<QueryBlockTask> query_block_tasks(const std::vector<cpu::SampleRange>& samples,
                                              int64_t num_heads) {
  std::vector<QueryBlockTask> tasks;
  for (size_t s = 0; s < samples.size(); ++s)
    for (int64_t first = 0; first < samples[s].length(); first += kQueryBlock)
      for (int64_t head = 0; head < num_heads; ++head)
        tasks.push_back({static_cast<int64_t>(s), head, first});
  // Late queries see most keys.
  std::stable_sort(
      tasks.begin(), tasks.end(),
      [](const QueryBlockTask& a, const QueryBlockTask& b) { return a.first > b.first; });
  return tasks;
}

std::vector<cpu::HeadTask> head_tasks(const std::vector<cpu::SampleRange>& samples,
                                      int64_t num_heads) {
  std::vector<cpu::HeadTask> tasks;
  for (size_t s = 0; s < samples.size(); ++s)
    for (int64_t head = 0; head < num_heads; ++head)
      tasks.push_back({samples[s], static_cast<int64_t>(s), head});
  std::stable_sort(tasks.begin(), tasks.end(), [](const cpu::HeadTask& a, const cpu::HeadTask& b) {
    return a.sample.length() > b.sample.length();
  });
  return tasks;
}

KeyGradientSums::KeyGradientSums(const AttentionBackward& args, const PackedAttention& packed)
    : tokens_(args.forward.q.dim(0)),
      num_prefix_(packed.keys.num_prefix),
      num_samples_(static_cast<int64_t>(packed.samples.size())),
      padded_dim_(packed.keys.padded_dim) {
  const int64_t heads = args.forward.shape.num_heads;
  token_parts_ = Tensor(Shape{2, heads, tokens_, padded_dim_}, DType::kFloat32);
  prefix_parts_ = Tensor(Shape{2, num_samples_ * heads, num_prefix_, padded_dim_}, DType::kFloat32);
  parts_.dk = token_parts_.data<float>();
  parts_.dv = parts_.dk + token_parts_.numel() / 2;
  parts_.dprefix_k = prefix_parts_.data<float>();
  parts_.dprefix_v = parts_.dprefix_k + prefix_parts_.numel() / 2;
}

namespace {
// Head h of row t of out = sum over outer and over the query heads of h, in order.
struct PartLayout {
  int64_t rows = 0;  // T or P
  int64_t padded_dim = 0;
  int64_t outer_count = 1;  // samples of prefix parts
};
void reduce_parts(const AttentionShape& shape, const float* parts, const PartLayout& layout,
                  const TensorView& out) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t head_stride = layout.rows * layout.padded_dim;
  parallel_for(layout.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
        const float* const first = parts + h * group * head_stride + t * layout.padded_dim;
        const int64_t element = (t * shape.num_kv_heads + h) * shape.head_dim;
        const TensorView row(static_cast<std::byte*>(out.raw()) + element * size_of(out.dtype()),
                             out.dtype(), Shape{shape.head_dim});
        cpu::sum_parts({first, head_stride, group}, shape.num_heads * head_stride,
                       layout.outer_count, row);
      }
    }
  });
}
}  // namespace

void KeyGradientSums::reduce(const AttentionBackward& args) const {
  const AttentionShape& shape = args.forward.shape;
  reduce_parts(shape, parts_.dk, {tokens_, padded_dim_, 1}, args.dk);
  reduce_parts(shape, parts_.dv, {tokens_, padded_dim_, 1}, args.dv);
  if (!args.dprefix_k.empty())
    reduce_parts(shape, parts_.dprefix_k, {num_prefix_, padded_dim_, num_samples_}, args.dprefix_k);
  if (!args.dprefix_v.empty())
    reduce_parts(shape, parts_.dprefix_v, {num_prefix_, padded_dim_, num_samples_}, args.dprefix_v);
}

}  // namespace shardtune::kernels
