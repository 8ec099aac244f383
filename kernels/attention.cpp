#include "kernels/attention.h"

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/attention_bf16.h"
#include "kernels/attention_tasks.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

namespace {
// The functions for this machine's bf16 instructions; null when the f32 form runs.
const bf16::TileFunctions* bf16_functions(const TensorView& q) {
  return q.dtype() == DType::kBFloat16 && has_fast_bfloat16() ? bf16::machine_functions() : nullptr;
}

PackedAttention pack(const AttentionForward& args, cpu::PackFor pass) {
  const int64_t tiles = pass == cpu::PackFor::kForward ? 2 : 3;
  PackedAttention packed = plan_packing(args, tiles, DType::kFloat32);
  count_task_scratch(static_cast<int64_t>(packed.blocks.size()),
                     cpu::pack_scratch_floats(packed.keys.padded_dim) * size_of(DType::kFloat32));
  parallel_tasks(static_cast<int64_t>(packed.blocks.size()), [&](int64_t i) {
    cpu::pack_key_block(packed.blocks[static_cast<size_t>(i)], packed.keys, pass);
  });
  return packed;
}
}  // namespace

void attention(const AttentionForward& args) {
  check_attention(args);
  const PurposeScope purpose(Purpose::kAttention);
  if (const bf16::TileFunctions* const functions = bf16_functions(args.q))
    return bf16::attention(args, *functions);
  const PackedAttention packed = pack(args, cpu::PackFor::kForward);
  const auto tasks = query_block_tasks(packed.samples, args.shape.num_heads);
  count_task_scratch(static_cast<int64_t>(tasks.size()),
                     cpu::query_scratch_floats(packed.keys.padded_dim) * size_of(DType::kFloat32));
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const QueryBlockTask& task = tasks[static_cast<size_t>(i)];
    cpu::attention_query_block(args, packed.keys, packed.samples[static_cast<size_t>(task.sample)],
                               task.head, task.first);
  });
}

void attention_backward(const AttentionBackward& args) {
  check_attention_backward(args);
  const PurposeScope purpose(Purpose::kAttention);
  if (const bf16::TileFunctions* const functions = bf16_functions(args.forward.q))
    return bf16::attention_backward(args, *functions);
  const PackedAttention packed = pack(args.forward, cpu::PackFor::kBackward);
  const KeyGradientSums sums(args, packed);
  const auto tasks = head_tasks(packed.samples, args.forward.shape.num_heads);
  count_task_scratch(static_cast<int64_t>(tasks.size()),
                     cpu::head_scratch_floats(packed.keys.padded_dim, longest_sample(packed)) *
                         size_of(DType::kFloat32));
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    cpu::attention_backward_head(args, packed.keys, tasks[static_cast<size_t>(i)], sums.parts());
  });
  sums.reduce(args);
}

void attention_decode(const AttentionShape& shape, std::span<const CachedSequence> sequences,
                      const TensorView& q, const TensorView& out) {
  check_attention_shape(shape);
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
