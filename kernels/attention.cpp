#include "kernels/attention.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/parallel_for.h"
#include "kernels/attention_cpu.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

namespace {
using cpu::kKeyBlock;
using cpu::kQueryBlock;

void check_shape(const AttentionShape& shape) {
  if (shape.num_heads <= 0 || shape.num_kv_heads <= 0 || shape.head_dim <= 0 || shape.window < 0 ||
      shape.num_heads % shape.num_kv_heads != 0)
    throw ArgumentError("attention: shape: expected query heads a multiple of K/V heads, found " +
                        std::to_string(shape.num_heads) + " and " +
                        std::to_string(shape.num_kv_heads) + ", head_dim " +
                        std::to_string(shape.head_dim) + ", window " +
                        std::to_string(shape.window) + ". This is a bug of the caller.");
}

void check_offsets(std::span<const int32_t> offsets, int64_t tokens) {
  bool good = !offsets.empty() && offsets.front() == 0 && offsets.back() == tokens;
  for (size_t s = 0; good && s + 1 < offsets.size(); ++s)
    good = offsets[s] <= offsets[s + 1];
  if (!good)
    throw ArgumentError("attention: sample_offsets: expected to rise from 0 to " +
                        std::to_string(tokens) + ". This is a bug of the caller.");
}

void check_forward(const AttentionForward& args) {
  const AttentionShape& shape = args.shape;
  check_shape(shape);
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

struct Packed {
  Tensor storage;
  cpu::PackedKeys keys;
  std::vector<cpu::SampleRange> samples;
};

Packed pack(const AttentionForward& args, cpu::PackFor pass) {
  Packed packed;
  cpu::PackedKeys& keys = packed.keys;
  keys.num_kv_heads = args.shape.num_kv_heads;
  keys.padded_dim = round_up(args.shape.head_dim, cpu::kColumnMultiple);
  keys.tiles = pass == cpu::PackFor::kForward ? 2 : 3;
  keys.num_prefix = args.prefix_k.empty() ? 0 : args.prefix_k.dim(0);
  packed.samples = sample_ranges(args, keys.num_prefix_blocks());
  std::vector<cpu::PackBlock> blocks;
  for (int64_t row = 0; row < keys.num_prefix; row += kKeyBlock)
    blocks.push_back({args.prefix_k, args.prefix_v, row, std::min(keys.num_prefix, row + kKeyBlock),
                      row / kKeyBlock});
  for (const cpu::SampleRange& sample : packed.samples)
    for (int64_t token = sample.begin; token < sample.end; token += kKeyBlock)
      blocks.push_back({args.k, args.v, token, std::min(sample.end, token + kKeyBlock),
                        sample.first_block + (token - sample.begin) / kKeyBlock});
  packed.storage = Tensor(Shape{static_cast<int64_t>(blocks.size()) * keys.num_kv_heads, keys.tiles,
                                keys.tile_floats()},
                          DType::kFloat32);
  keys.data = packed.storage.data<float>();
  parallel_tasks(static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    cpu::pack_key_block(blocks[static_cast<size_t>(i)], keys, pass);
  });
  return packed;
}
}  // namespace

void attention(const AttentionForward& args) {
  check_forward(args);
  const Packed packed = pack(args, cpu::PackFor::kForward);
  struct Task {
    const cpu::SampleRange* sample;
    int64_t head, first;
  };
  std::vector<Task> tasks;
  for (const cpu::SampleRange& sample : packed.samples)
    for (int64_t first = 0; first < sample.length(); first += kQueryBlock)
      for (int64_t head = 0; head < args.shape.num_heads; ++head)
        tasks.push_back({&sample, head, first});
  // Late queries see most keys: the long tasks first, so that threads finish together.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.first > b.first; });
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    cpu::attention_query_block(args, packed.keys, *task.sample, task.head, task.first);
  });
}

namespace {
void check_backward(const AttentionBackward& args) {
  const AttentionForward& forward = args.forward;
  check_forward(forward);
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

void attention_backward(const AttentionBackward& args) {
  check_backward(args);
  const AttentionForward& forward = args.forward;
  const AttentionShape& shape = forward.shape;
  const Packed packed = pack(forward, cpu::PackFor::kBackward);
  const auto num_samples = static_cast<int64_t>(packed.samples.size());
  const int64_t tokens = forward.q.dim(0), padded = packed.keys.padded_dim;
  const int64_t num_prefix = packed.keys.num_prefix;
  const Tensor token_parts(Shape{2, shape.num_heads, tokens, padded}, DType::kFloat32);
  const Tensor prefix_parts(Shape{2, num_samples * shape.num_heads, num_prefix, padded},
                            DType::kFloat32);
  cpu::KeyGradientParts parts;
  parts.dk = token_parts.data<float>();
  parts.dv = parts.dk + token_parts.numel() / 2;
  parts.dprefix_k = prefix_parts.data<float>();
  parts.dprefix_v = parts.dprefix_k + prefix_parts.numel() / 2;

  // The longest samples first, so that threads finish together.
  std::vector<int64_t> order(static_cast<size_t>(num_samples));
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int64_t s) { return packed.samples[static_cast<size_t>(s)].length(); };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length(a) > length(b); });
  parallel_tasks(num_samples * shape.num_heads, [&](int64_t i) {
    const int64_t sample = order[static_cast<size_t>(i / shape.num_heads)];
    cpu::attention_backward_head(
        args, packed.keys,
        {packed.samples[static_cast<size_t>(sample)], sample, i % shape.num_heads}, parts);
  });
  reduce_parts(shape, parts.dk, {tokens, padded, 1}, args.dk);
  reduce_parts(shape, parts.dv, {tokens, padded, 1}, args.dv);
  if (!args.dprefix_k.empty())
    reduce_parts(shape, parts.dprefix_k, {num_prefix, padded, num_samples}, args.dprefix_k);
  if (!args.dprefix_v.empty())
    reduce_parts(shape, parts.dprefix_v, {num_prefix, padded, num_samples}, args.dprefix_v);
}

void attention_decode(const AttentionShape& shape, std::span<const CachedSequence> sequences,
                      const TensorView& q, const TensorView& out) {
  check_shape(shape);
  const auto batch = static_cast<int64_t>(sequences.size());
  check_matrix("attention_decode", "q", q, batch, shape.num_heads * shape.head_dim);
  check_matrix("attention_decode", "out", out, batch, shape.num_heads * shape.head_dim);
  check_same_dtype("attention_decode", "out", out, q.dtype());
  for (const CachedSequence& sequence : sequences) {
    if (sequence.length <= 0 || sequence.k == nullptr || sequence.v == nullptr)
      throw ArgumentError(
          "attention_decode: expected a cached sequence of one token or more, "
          "found length " +
          std::to_string(sequence.length) + ". This is a bug of the caller.");
  }
  parallel_tasks(batch * shape.num_kv_heads, [&](int64_t i) {
    const int64_t b = i / shape.num_kv_heads;
    cpu::attention_decode_head(shape, sequences[static_cast<size_t>(b)], q, out, b,
                               i % shape.num_kv_heads);
  });
}

}  // namespace shardtune::kernels
