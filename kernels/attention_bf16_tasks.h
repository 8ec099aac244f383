// What attention on bf16 tiles (attention_bf16_tiles.h) is asked to do: plain pointers and static
// functions alone, for the same reason.
// Legend: D head size, W padded to a multiple of 32, blocks of 64 queries and 64 keys. A "pair" is
// two bf16 in one 32-bit word, the lower index in the lower half.
#pragma once

#include <cstdint>

namespace shardtune::kernels::bf16 {

inline constexpr int64_t kBlock = 64;
inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kGroups = kBlock / kLanes;

/// One packed block of keys. Tiles of 64 * W bf16: forward k rows [64,W] and v in pairs of keys
/// [32,W,2]; backward k rows, v rows, and k in pairs of keys. dk and dv [count,W] are written.
struct KeyBlock {
  const uint16_t* tiles = nullptr;
  int64_t first = 0;  // token of the sample; ignored for a prefix
  int64_t count = 0;
  int64_t is_prefix = 0;
  float* dk = nullptr;
  float* dv = nullptr;
};

/// Rows of one head: element (token, d) at data[token * stride + d].
struct Rows {
  uint16_t* data = nullptr;
  int64_t stride = 0;
};

struct Shared {
  int64_t dim = 0, padded = 0, window = 0;
  float scale = 0.0f;
  const KeyBlock* blocks = nullptr;
  int64_t num_blocks = 0;
  float* scratch = nullptr;
};

/// Queries [first, first + rows) of a sample; pointers stand at the first of them.
struct QueryTask {
  Shared shared;
  Rows q, out;
  float* lse = nullptr;  // null when no backward follows
  int64_t lse_stride = 0;
  int64_t first = 0, rows = 0;
};
static constexpr int64_t query_scratch_floats(int64_t padded) {
  return 32 * padded + kBlock * padded + kBlock * kBlock + 32 * kBlock + 3 * kBlock;
}

/// One head of one whole sample, backward.
struct HeadTask {
  Shared shared;
  Rows q, out, dout, dq;
  const float* lse = nullptr;
  int64_t lse_stride = 0;
  int64_t length = 0;
};
static constexpr int64_t head_scratch_floats(int64_t padded, int64_t length) {
  return (length + kBlock - 1) / kBlock * (192 * padded + 2 * kBlock) + 2 * kBlock * kBlock +
         3 * 32 * kBlock + 2 * kBlock * padded;
}

/// Packs one block of keys and values of one head: KeyBlock::tiles.
struct PackTask {
  Shared shared;
  Rows k, v;  // at the block's first token
  uint16_t* tiles = nullptr;
  int64_t count = 0, for_backward = 0;
};

/// Tiles<Ops> for one set of instructions.
struct TileFunctions {
  void (*pack_keys)(const PackTask& task);
  void (*query_block)(const QueryTask& task);
  void (*backward_head)(const HeadTask& task);
};
/// For AVX512-BF16; null where this build has none. Call only when has_fast_bfloat16().
const TileFunctions* machine_functions();

/// Queries of a block that see key row j: columns [low, high).
struct Columns {
  int64_t low, high;
};
static inline Columns columns_of_key(const KeyBlock& block, int64_t j, int64_t first, int64_t rows,
                                     int64_t window) {
  if (j >= block.count)
    return {0, 0};
  if (block.is_prefix != 0)
    return {0, rows};
  const auto clamp = [rows](int64_t x) { return x < 0 ? 0 : x > rows ? rows : x; };
  const int64_t key = block.first + j - first;
  const int64_t low = clamp(key), high = window > 0 ? clamp(key + window) : rows;
  return {low, high < low ? low : high};
}

/// Whether every query of a whole block sees every key of a whole block.
static inline bool sees_all(const KeyBlock& block, int64_t first, int64_t rows, int64_t window) {
  if (block.count < kBlock || rows < kBlock)
    return false;
  if (block.is_prefix != 0)
    return true;
  return block.first + kBlock <= first && (window == 0 || first + kBlock - block.first <= window);
}

}  // namespace shardtune::kernels::bf16
