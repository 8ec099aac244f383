#include "kernels/attention_bf16.h"

#include <algorithm>
#include <vector>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/attention_tasks.h"

namespace shardtune::kernels::bf16 {

namespace {
uint16_t* bits_of(const TensorView& x) { return static_cast<uint16_t*>(x.raw()); }

Rows rows_of(const TensorView& x, int64_t token, int64_t head, int64_t dim) {
  return {bits_of(x) + token * x.dim(1) + head * dim, x.dim(1)};
}

Shared shared_of(const AttentionShape& shape, int64_t padded) {
  Shared shared;
  shared.dim = shape.head_dim;
  shared.padded = padded;
  shared.window = shape.window;
  shared.scale = shape.scale;
  return shared;
}

void pack_block(const cpu::PackBlock& block, const cpu::PackedKeys& keys, const Shared& shared,
                cpu::PackFor pass, const TileFunctions& functions) {
  for (int64_t head = 0; head < keys.num_kv_heads; ++head) {
    PackTask task;
    task.shared = shared;
    task.k = rows_of(block.k, block.begin, head, shared.dim);
    task.v = rows_of(block.v, block.begin, head, shared.dim);
    task.tiles = reinterpret_cast<uint16_t*>(keys.block(block.index, head));
    task.count = block.end - block.begin;
    task.for_backward = pass == cpu::PackFor::kBackward ? 1 : 0;
    functions.pack_keys(task);
  }
}

PackedAttention pack(const AttentionForward& args, cpu::PackFor pass,
                     const TileFunctions& functions) {
  const int64_t tiles = pass == cpu::PackFor::kForward ? 2 : 3;
  PackedAttention packed = plan_packing(args, tiles, DType::kBFloat16);
  const Shared shared = shared_of(args.shape, packed.keys.padded_dim);
  parallel_tasks(static_cast<int64_t>(packed.blocks.size()), [&](int64_t i) {
    pack_block(packed.blocks[static_cast<size_t>(i)], packed.keys, shared, pass, functions);
  });
  return packed;
}

// The prefix's blocks, then those of the sample's tokens [first, last].
std::vector<KeyBlock> key_blocks(const cpu::PackedKeys& keys, const cpu::SampleRange& sample,
                                 int64_t kv_head, int64_t first, int64_t last) {
  std::vector<KeyBlock> blocks;
  const auto add = [&](int64_t index, int64_t row, int64_t rows, int64_t is_prefix) {
    KeyBlock block;
    block.tiles = reinterpret_cast<const uint16_t*>(keys.block(index, kv_head));
    block.first = row;
    block.count = std::min(kBlock, rows - row);
    block.is_prefix = is_prefix;
    blocks.push_back(block);
  };
  for (int64_t b = 0; b < keys.num_prefix_blocks(); ++b)
    add(b, b * kBlock, keys.num_prefix, 1);
  for (int64_t b = first / kBlock; b <= last / kBlock; ++b)
    add(sample.first_block + b, b * kBlock, sample.length(), 0);
  return blocks;
}
}  // namespace

void attention(const AttentionForward& args, const TileFunctions& functions) {
  const AttentionShape& shape = args.shape;
  const PackedAttention packed = pack(args, cpu::PackFor::kForward, functions);
  const auto tasks = query_block_tasks(packed.samples, shape.num_heads);
  const int64_t padded = packed.keys.padded_dim;
  count_task_scratch(static_cast<int64_t>(tasks.size()),
                     query_scratch_floats(padded) * size_of(DType::kFloat32));
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const QueryBlockTask& from = tasks[static_cast<size_t>(i)];
    const cpu::SampleRange& sample = packed.samples[static_cast<size_t>(from.sample)];
    const Tensor scratch(Shape{query_scratch_floats(padded)}, DType::kFloat32);
    QueryTask task;
    task.first = from.first;
    task.rows = std::min(kBlock, sample.length() - from.first);
    const int64_t oldest =
        shape.window > 0 ? std::max<int64_t>(0, from.first - shape.window + 1) : 0;
    const auto blocks =
        key_blocks(packed.keys, sample, from.head * shape.num_kv_heads / shape.num_heads, oldest,
                   from.first + task.rows - 1);
    task.shared = shared_of(shape, padded);
    task.shared.blocks = blocks.data();
    task.shared.num_blocks = static_cast<int64_t>(blocks.size());
    task.shared.scratch = scratch.data<float>();
    const int64_t token = sample.begin + from.first;
    task.q = rows_of(args.q, token, from.head, shape.head_dim);
    task.out = rows_of(args.out, token, from.head, shape.head_dim);
    task.lse_stride = shape.num_heads;
    if (!args.lse.empty())
      task.lse = args.lse.data<float>() + token * shape.num_heads + from.head;
    functions.query_block(task);
  });
}

namespace {
void run_head(const AttentionBackward& args, const PackedAttention& packed,
              const cpu::HeadTask& from, const cpu::KeyGradientParts& parts,
              const TileFunctions& functions) {
  const AttentionForward& forward = args.forward;
  const AttentionShape& shape = forward.shape;
  const int64_t padded = packed.keys.padded_dim, length = from.sample.length();
  const Tensor scratch(Shape{head_scratch_floats(padded, length)}, DType::kFloat32);
  auto blocks = key_blocks(packed.keys, from.sample,
                           from.head * shape.num_kv_heads / shape.num_heads, 0, length - 1);
  for (KeyBlock& block : blocks) {
    const bool prefix = block.is_prefix != 0;
    const int64_t row =
        prefix ? (from.sample_index * shape.num_heads + from.head) * packed.keys.num_prefix
               : from.head * forward.q.dim(0) + from.sample.begin;
    block.dk = (prefix ? parts.dprefix_k : parts.dk) + (row + block.first) * padded;
    block.dv = (prefix ? parts.dprefix_v : parts.dv) + (row + block.first) * padded;
  }
  HeadTask task;
  task.shared = shared_of(shape, padded);
  task.shared.blocks = blocks.data();
  task.shared.num_blocks = static_cast<int64_t>(blocks.size());
  task.shared.scratch = scratch.data<float>();
  task.length = length;
  task.q = rows_of(forward.q, from.sample.begin, from.head, shape.head_dim);
  task.out = rows_of(forward.out, from.sample.begin, from.head, shape.head_dim);
  task.dout = rows_of(args.dout, from.sample.begin, from.head, shape.head_dim);
  task.dq = rows_of(args.dq, from.sample.begin, from.head, shape.head_dim);
  task.lse = forward.lse.data<const float>() + from.sample.begin * shape.num_heads + from.head;
  task.lse_stride = shape.num_heads;
  functions.backward_head(task);
}
}  // namespace

void attention_backward(const AttentionBackward& args, const TileFunctions& functions) {
  const PackedAttention packed = pack(args.forward, cpu::PackFor::kBackward, functions);
  const KeyGradientSums sums(args, packed);
  const auto tasks = head_tasks(packed.samples, args.forward.shape.num_heads);
  count_task_scratch(static_cast<int64_t>(tasks.size()),
                     head_scratch_floats(packed.keys.padded_dim, longest_sample(packed)) *
                         size_of(DType::kFloat32));
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    run_head(args, packed, tasks[static_cast<size_t>(i)], sums.parts(), functions);
  });
  sums.reduce(args);
}

}  // namespace shardtune::kernels::bf16
