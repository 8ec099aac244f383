// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/attention_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include "kernels/simd-inl.h"
#include "kernels/tile_product-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

using cpu::kKeyBlock;
using cpu::kQueryBlock;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Row head_row(const TensorView& x, int64_t token, int64_t head, int64_t dim) {
  return row_of(x) + (token * x.dim(1) + head * dim);
}

// Copies D elements as f32 and fills up to W with zeros.
HWY_INLINE void load_padded(Row from, int64_t dim, int64_t padded, float* to) {
  const Row out{to, nullptr};
  for_each_vector(static_cast<size_t>(dim),
                  [&](size_t i, size_t n) HWY_ATTR { store_n(load_n(from, i, n), out, i, n); });
  std::fill(to + dim, to + padded, 0.0f);
}

void transpose_tile(const float* rows, int64_t padded, float* out) {
  for (int64_t j = 0; j < kKeyBlock; ++j)
    for (int64_t d = 0; d < padded; ++d)
      out[d * kKeyBlock + j] = rows[j * padded + d];
}

void PackKeyBlock(const cpu::PackBlock& block, const cpu::PackedKeys& keys, cpu::PackFor pass) {
  const int64_t dim = block.k.dim(1) / keys.num_kv_heads, padded = keys.padded_dim;
  const int64_t count = block.end - block.begin;
  const Tensor rows(Shape{cpu::pack_scratch_floats(padded)}, DType::kFloat32);
  for (int64_t head = 0; head < keys.num_kv_heads; ++head) {
    float* const tiles = keys.block(block.index, head);
    const auto load_rows = [&](const TensorView& x, float* to) {
      for (int64_t j = 0; j < count; ++j)
        load_padded(head_row(x, block.begin + j, head, dim), dim, padded, to + j * padded);
      std::fill(to + count * padded, to + kKeyBlock * padded, 0.0f);
    };
    if (pass == cpu::PackFor::kForward) {
      load_rows(block.k, rows.data<float>());
      transpose_tile(rows.data<float>(), padded, tiles);
      load_rows(block.v, tiles + keys.tile_floats);
    } else {
      load_rows(block.v, rows.data<float>());
      transpose_tile(rows.data<float>(), padded, tiles + keys.tile_floats);
      load_rows(block.k, tiles + 2 * keys.tile_floats);
      transpose_tile(tiles + 2 * keys.tile_floats, padded, tiles);
    }
  }
}

// One block of keys as a query sees it: the columns [low, high) that are visible to it.
struct KeyRange {
  int64_t index;  // of the packed block
  int64_t first;  // token of the sample, or row of the prefix
  int64_t count;
  bool prefix;
};
struct Visible {
  int64_t low, high;
};
Visible visible_columns(const KeyRange& keys, int64_t query, int64_t window) {
  if (keys.prefix)
    return {0, keys.count};
  const int64_t high = std::clamp<int64_t>(query + 1 - keys.first, 0, keys.count);
  const int64_t low =
      window > 0 ? std::clamp<int64_t>(query - window + 1 - keys.first, 0, keys.count) : 0;
  return {std::min(low, high), high};
}

// Calls visit(KeyRange) for the blocks that queries [first, last] of the sample see, in order.
template <class Visit>
HWY_INLINE void for_each_key_block(const cpu::PackedKeys& keys, const cpu::SampleRange& sample,
                                   int64_t first, int64_t last, int64_t window,
                                   const Visit& visit) {
  for (int64_t b = 0; b < keys.num_prefix_blocks(); ++b)
    visit(KeyRange{b, b * kKeyBlock, std::min(kKeyBlock, keys.num_prefix - b * kKeyBlock), true});
  const int64_t oldest = window > 0 ? std::max<int64_t>(0, first - window + 1) : 0;
  for (int64_t b = oldest / kKeyBlock; b <= last / kKeyBlock; ++b)
    visit(KeyRange{sample.first_block + b, b * kKeyBlock,
                   std::min(kKeyBlock, sample.length() - b * kKeyBlock), false});
}

// Running softmax of a block of queries.
struct QueryTile {
  float* q;       // [kQueryBlock, W]
  float* out;     // [kQueryBlock, W], sums so far
  float* scores;  // [kQueryBlock, kKeyBlock]
  float max[kQueryBlock];
  float sum[kQueryBlock];
};

// Turns row i of scores into exp(scale * score - max) and rescales what was summed before.
HWY_INLINE void softmax_row(QueryTile& tile, int64_t i, Visible visible, float scale,
                            int64_t padded) {
  const Df df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  float* const row = tile.scores + i * kKeyBlock;
  std::fill(row, row + visible.low, kMinusInfinity);
  std::fill(row + visible.high, row + kKeyBlock, kMinusInfinity);
  const Vf factor = hn::Set(df, scale);
  Vf maxima = hn::Set(df, tile.max[i]);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    // A masked score times a scale of 0 would be NaN, hence the select.
    const Vf score = hn::LoadU(df, row + j);
    const Vf masked = hn::Set(df, kMinusInfinity);
    const Vf scaled = hn::IfThenElse(hn::Eq(score, masked), masked, hn::Mul(score, factor));
    hn::StoreU(scaled, df, row + j);
    maxima = hn::Max(maxima, scaled);
  }
  const float max = max_of_lanes(maxima);
  if (max == kMinusInfinity) {
    std::fill(row, row + kKeyBlock, 0.0f);
    return;
  }
  Vf sums = hn::Zero(df);
  const Vf shift = hn::Set(df, max);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    const Vf p = exp_f32(hn::Sub(hn::LoadU(df, row + j), shift));
    hn::StoreU(p, df, row + j);
    sums = hn::Add(sums, p);
  }
  if (max != tile.max[i]) {
    const float shrink = tile.max[i] == kMinusInfinity ? 0.0f : std::exp(tile.max[i] - max);
    tile.sum[i] *= shrink;
    const Vf rescale = hn::Set(df, shrink);
    float* const out = tile.out + i * padded;
    for (int64_t d = 0; d < padded; d += lanes)
      hn::StoreU(hn::Mul(hn::LoadU(df, out + d), rescale), df, out + d);
    tile.max[i] = max;
  }
  tile.sum[i] += sum_of_lanes(sums);
}

void finish_query_block(const AttentionForward& args, const QueryTile& tile, int64_t token,
                        int64_t rows, int64_t head) {
  const int64_t dim = args.shape.head_dim, padded = (dim + 31) / 32 * 32;
  for (int64_t i = 0; i < rows; ++i) {
    const Vf inverse = hn::Set(Df(), 1.0f / tile.sum[i]);
    const Row from{tile.out + i * padded, nullptr};
    const Row to = head_row(args.out, token + i, head, dim);
    for_each_vector(static_cast<size_t>(dim), [&](size_t d, size_t n) HWY_ATTR {
      store_n(hn::Mul(load_n(from, d, n), inverse), to, d, n);
    });
    if (!args.lse.empty())
      args.lse.data<float>()[(token + i) * args.shape.num_heads + head] =
          tile.max[i] + std::log(tile.sum[i]);
  }
}

void AttentionQueryBlock(const AttentionForward& args, const cpu::PackedKeys& keys,
                         const cpu::SampleRange& sample, int64_t head, int64_t first) {
  const AttentionShape& shape = args.shape;
  const int64_t padded = keys.padded_dim, rows = std::min(kQueryBlock, sample.length() - first);
  const int64_t kv_head = head * shape.num_kv_heads / shape.num_heads;
  const Tensor scratch(Shape{cpu::query_scratch_floats(padded)}, DType::kFloat32);
  QueryTile tile{};
  tile.q = scratch.data<float>();
  tile.out = tile.q + kQueryBlock * padded;
  tile.scores = tile.out + kQueryBlock * padded;
  std::fill_n(tile.out, kQueryBlock * padded, 0.0f);
  std::fill_n(tile.max, kQueryBlock, kMinusInfinity);
  for (int64_t i = 0; i < rows; ++i)
    load_padded(head_row(args.q, sample.begin + first + i, head, shape.head_dim), shape.head_dim,
                padded, tile.q + i * padded);
  for_each_key_block(
      keys, sample, first, first + rows - 1, shape.window, [&](const KeyRange& range) HWY_ATTR {
        const float* const k_transposed = keys.block(range.index, kv_head);
        const float* const v = k_transposed + keys.tile_floats;
        tile_product({rows, kKeyBlock, shape.head_dim}, {tile.q, padded, 1},
                     {k_transposed, kKeyBlock}, {tile.scores, kKeyBlock}, Accumulate::kNo);
        for (int64_t i = 0; i < rows; ++i)
          softmax_row(tile, i, visible_columns(range, first + i, shape.window), shape.scale,
                      padded);
        tile_product({rows, padded, range.count}, {tile.scores, kKeyBlock, 1}, {v, padded},
                     {tile.out, padded}, Accumulate::kYes);
      });
  finish_query_block(args, tile, sample.begin + first, rows, head);
}

// f32 copies of one sample and head, and the tiles of one pair of blocks.
struct HeadTiles {
  float* q;     // [length, W]
  float* dout;  // [length, W]
  float* dq;    // [length, W]
  float* lse;   // [length]
  float* dot;   // [length], sum of dout * out
  float* p;     // [kQueryBlock, kKeyBlock]
  float* ds;    // [kQueryBlock, kKeyBlock], dp before
};

void load_head(const AttentionBackward& args, const cpu::HeadTask& task, int64_t padded,
               const HeadTiles& tiles) {
  const AttentionForward& forward = args.forward;
  const int64_t dim = forward.shape.head_dim;
  for (int64_t i = 0; i < task.sample.length(); ++i) {
    const int64_t token = task.sample.begin + i;
    load_padded(head_row(forward.q, token, task.head, dim), dim, padded, tiles.q + i * padded);
    const Row dout = head_row(args.dout, token, task.head, dim);
    const Row out = head_row(forward.out, token, task.head, dim);
    load_padded(dout, dim, padded, tiles.dout + i * padded);
    Vf dot = hn::Zero(Df());
    for_each_vector(static_cast<size_t>(dim), [&](size_t d, size_t n) HWY_ATTR {
      dot = hn::MulAdd(load_n(dout, d, n), load_n(out, d, n), dot);
    });
    tiles.dot[i] = sum_of_lanes(dot);
    tiles.lse[i] = forward.lse.data<const float>()[token * forward.shape.num_heads + task.head];
  }
  std::fill_n(tiles.dq, task.sample.length() * padded, 0.0f);
}

// From scores in p and dP in ds: p = exp(scale * score - lse), ds = scale * p * (dP - dot).
HWY_INLINE void probability_row(const HeadTiles& tiles, int64_t i, int64_t query, Visible visible,
                                float scale) {
  const Df df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  float* const p = tiles.p + i * kKeyBlock;
  float* const ds = tiles.ds + i * kKeyBlock;
  const Vf factor = hn::Set(df, scale), lse = hn::Set(df, tiles.lse[query]);
  const Vf dot = hn::Set(df, tiles.dot[query]);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    const Vf value = exp_f32(hn::Sub(hn::Mul(hn::LoadU(df, p + j), factor), lse));
    const Vf slope = hn::Mul(value, hn::Sub(hn::LoadU(df, ds + j), dot));
    hn::StoreU(value, df, p + j);
    hn::StoreU(hn::Mul(slope, factor), df, ds + j);
  }
  for (float* const row : {p, ds}) {
    std::fill(row, row + visible.low, 0.0f);
    std::fill(row + visible.high, row + kKeyBlock, 0.0f);
  }
}

struct BlockGradients {
  float* dk;  // [count, W]
  float* dv;
};

// All query blocks that see one block of keys, in order.
void backward_key_block(const AttentionShape& shape, const cpu::PackedKeys& keys,
                        const cpu::HeadTask& task, const KeyRange& range, const HeadTiles& tiles,
                        const BlockGradients& gradients) {
  const int64_t padded = keys.padded_dim, dim = shape.head_dim, length = task.sample.length();
  const int64_t kv_head = task.head * shape.num_kv_heads / shape.num_heads;
  const float* const k_transposed = keys.block(range.index, kv_head);
  const float* const v_transposed = k_transposed + keys.tile_floats;
  const float* const k = v_transposed + keys.tile_floats;
  const int64_t begin = range.prefix ? 0 : range.first / kQueryBlock * kQueryBlock;
  const int64_t newest = range.first + range.count - 1;
  const int64_t end =
      range.prefix || shape.window == 0 ? length : std::min(length, newest + shape.window);
  Accumulate accumulate = Accumulate::kNo;
  for (int64_t first = begin; first < end; first += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, length - first);
    const float* const q = tiles.q + first * padded;
    const float* const dout = tiles.dout + first * padded;
    tile_product({rows, kKeyBlock, dim}, {q, padded, 1}, {k_transposed, kKeyBlock},
                 {tiles.p, kKeyBlock}, Accumulate::kNo);
    tile_product({rows, kKeyBlock, dim}, {dout, padded, 1}, {v_transposed, kKeyBlock},
                 {tiles.ds, kKeyBlock}, Accumulate::kNo);
    for (int64_t i = 0; i < rows; ++i)
      probability_row(tiles, i, first + i, visible_columns(range, first + i, shape.window),
                      shape.scale);
    tile_product({range.count, padded, rows}, {tiles.p, 1, kKeyBlock}, {dout, padded},
                 {gradients.dv, padded}, accumulate);
    tile_product({range.count, padded, rows}, {tiles.ds, 1, kKeyBlock}, {q, padded},
                 {gradients.dk, padded}, accumulate);
    tile_product({rows, padded, range.count}, {tiles.ds, kKeyBlock, 1}, {k, padded},
                 {tiles.dq + first * padded, padded}, Accumulate::kYes);
    accumulate = Accumulate::kYes;
  }
}

void AttentionBackwardHead(const AttentionBackward& args, const cpu::PackedKeys& keys,
                           const cpu::HeadTask& task, const cpu::KeyGradientParts& parts) {
  const AttentionForward& forward = args.forward;
  const AttentionShape& shape = forward.shape;
  const int64_t padded = keys.padded_dim, length = task.sample.length();
  const int64_t num_tokens = forward.q.dim(0), dim = shape.head_dim;
  const Tensor scratch(Shape{cpu::head_scratch_floats(padded, length)}, DType::kFloat32);
  HeadTiles tiles{};
  tiles.q = scratch.data<float>();
  tiles.dout = tiles.q + length * padded;
  tiles.dq = tiles.dout + length * padded;
  tiles.p = tiles.dq + length * padded;
  tiles.ds = tiles.p + kQueryBlock * kKeyBlock;
  tiles.lse = tiles.ds + kQueryBlock * kKeyBlock;
  tiles.dot = tiles.lse + length;
  load_head(args, task, padded, tiles);
  // Every block of the sample, whatever the window: each is seen by its own tokens at least.
  for_each_key_block(keys, task.sample, 0, length - 1, 0, [&](const KeyRange& range) HWY_ATTR {
    const int64_t row =
        range.prefix
            ? (task.sample_index * shape.num_heads + task.head) * keys.num_prefix + range.first
            : task.head * num_tokens + task.sample.begin + range.first;
    const BlockGradients gradients{(range.prefix ? parts.dprefix_k : parts.dk) + row * padded,
                                   (range.prefix ? parts.dprefix_v : parts.dv) + row * padded};
    backward_key_block(shape, keys, task, range, tiles, gradients);
  });
  for (int64_t i = 0; i < length; ++i) {
    const Row from{tiles.dq + i * padded, nullptr};
    const Row to = head_row(args.dq, task.sample.begin + i, task.head, dim);
    for_each_vector(static_cast<size_t>(dim),
                    [&](size_t d, size_t n) HWY_ATTR { store_n(load_n(from, d, n), to, d, n); });
  }
}

void SumParts(const cpu::PartSum& inner, int64_t outer_stride, int64_t outer_count,
              const TensorView& out) {
  const Row to = row_of(out);
  for_each_vector(static_cast<size_t>(out.numel()), [&](size_t d, size_t n) HWY_ATTR {
    Vf sum = hn::Zero(Df());
    for (int64_t outer = 0; outer < outer_count; ++outer)
      for (int64_t part = 0; part < inner.count; ++part) {
        const float* const from = inner.first + outer * outer_stride + part * inner.stride;
        sum = hn::Add(sum, load_n({const_cast<float*>(from), nullptr}, d, n));
      }
    store_n(sum, to, d, n);
  });
}

void AttentionDecodeHead(const AttentionShape& shape, const CachedSequence& sequence,
                         const TensorView& q, const TensorView& out, int64_t b, int64_t kv_head) {
  const Df df;
  const int64_t dim = shape.head_dim, length = sequence.length;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const Shape cache_shape{length, shape.num_kv_heads * dim};
  const TensorView k(sequence.k, q.dtype(), cache_shape), v(sequence.v, q.dtype(), cache_shape);
  const auto count = static_cast<size_t>(dim);
  const Tensor scratch(Shape{length + dim}, DType::kFloat32);
  float* const scores = scratch.data<float>();
  const Row scores_row{scores, nullptr}, sums{scores + length, nullptr};
  for (int64_t g = 0; g < group; ++g) {
    const Row query = head_row(q, b, kv_head * group + g, dim);
    float max = kMinusInfinity;
    for (int64_t j = 0; j < length; ++j) {
      const Row key = head_row(k, j, kv_head, dim);
      Vf dot = hn::Zero(df);
      for_each_vector(count, [&](size_t d, size_t n) HWY_ATTR {
        dot = hn::MulAdd(load_n(query, d, n), load_n(key, d, n), dot);
      });
      scores[j] = sum_of_lanes(dot) * shape.scale;
      max = HWY_MAX(max, scores[j]);
    }
    float sum = 0.0f;
    const Vf shift = hn::Set(df, max);
    for_each_vector(static_cast<size_t>(length), [&](size_t j, size_t n) HWY_ATTR {
      const Vf p = exp_f32(hn::Sub(load_n(scores_row, j, n), shift));
      store_n(p, scores_row, j, n);
      sum += sum_of_lanes(n < hn::Lanes(df) ? hn::IfThenElseZero(hn::FirstN(df, n), p) : p);
    });
    std::fill_n(sums.f32, dim, 0.0f);
    for (int64_t j = 0; j < length; ++j) {
      const Row value = head_row(v, j, kv_head, dim);
      const Vf p = hn::Set(df, scores[j]);
      for_each_vector(count, [&](size_t d, size_t n) HWY_ATTR {
        store_n(hn::MulAdd(p, load_n(value, d, n), load_n(sums, d, n)), sums, d, n);
      });
    }
    const Row to = head_row(out, b, kv_head * group + g, dim);
    const Vf inverse = hn::Set(df, 1.0f / sum);
    for_each_vector(count, [&](size_t d, size_t n) HWY_ATTR {
      store_n(hn::Mul(load_n(sums, d, n), inverse), to, d, n);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(PackKeyBlock);
HWY_EXPORT(AttentionQueryBlock);
HWY_EXPORT(AttentionBackwardHead);
HWY_EXPORT(SumParts);
HWY_EXPORT(AttentionDecodeHead);

namespace cpu {
void pack_key_block(const PackBlock& block, const PackedKeys& keys, PackFor pass) {
  HWY_DYNAMIC_DISPATCH(PackKeyBlock)(block, keys, pass);
}
void attention_query_block(const AttentionForward& args, const PackedKeys& keys,
                           const SampleRange& sample, int64_t head, int64_t first) {
  HWY_DYNAMIC_DISPATCH(AttentionQueryBlock)(args, keys, sample, head, first);
}
void attention_backward_head(const AttentionBackward& args, const PackedKeys& keys,
                             const HeadTask& task, const KeyGradientParts& parts) {
  HWY_DYNAMIC_DISPATCH(AttentionBackwardHead)(args, keys, task, parts);
}
void sum_parts(const PartSum& inner, int64_t outer_stride, int64_t outer_count,
               const TensorView& out) {
  HWY_DYNAMIC_DISPATCH(SumParts)(inner, outer_stride, outer_count, out);
}
void attention_decode_head(const AttentionShape& shape, const CachedSequence& sequence,
                           const TensorView& q, const TensorView& out, int64_t b, int64_t kv_head) {
  HWY_DYNAMIC_DISPATCH(AttentionDecodeHead)(shape, sequence, q, out, b, kv_head);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
