// Attention on bf16 tiles with a dot-product instruction of pairs (VDPBF16PS), as templates over
// the vector operations: attention_avx512bf16.cpp gives it the instructions, the tests an
// emulation. Scores are kept transposed (keys down, queries across), so that maxima and sums over
// keys need no shuffles. Plain pointers, static functions and nothing of other headers: a file
// compiled for AVX-512 must not leave inline functions for the linker to pick on other machines.
#pragma once

#include "kernels/attention_bf16_tasks.h"

namespace shardtune::kernels::bf16 {

template <class Ops>
struct Tiles {
  using V = typename Ops::V;

  // Rows as they are, up to W and 64 filled with zeros.
  static void pack_rows(const uint16_t* from, int64_t stride, int64_t count, const Shared& shared,
                        uint16_t* to) {
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t dim = j < count ? shared.dim : 0;
      uint16_t* const row = to + j * shared.padded;
      for (int64_t d = 0; d < dim; ++d)
        row[d] = from[j * stride + d];
      for (int64_t d = dim; d < shared.padded; ++d)
        row[d] = 0;
    }
  }

  // Pairs of neighbouring rows: out [32,W].
  static void pack_row_pairs(const uint16_t* from, int64_t stride, int64_t count,
                             const Shared& shared, uint32_t* to) {
    for (int64_t j = 0; j < kBlock; j += 2) {
      const int64_t both = j + 1 < count ? shared.dim : 0, one = j < count ? shared.dim : 0;
      const uint16_t* const even = from + j * stride;
      uint32_t* const row = to + j / 2 * shared.padded;
      int64_t d = 0;
      for (; d + kLanes <= both; d += kLanes)
        Ops::store_interleaved(row + d, even + d, even + stride + d);
      for (; d < both; ++d)
        row[d] = even[d] | static_cast<uint32_t>(even[stride + d]) << 16;
      for (; d < one; ++d)
        row[d] = even[d];
      for (; d < shared.padded; ++d)
        row[d] = 0;
    }
  }

  // Pairs of neighbouring columns, transposed: out [W/2,64].
  static void pack_column_pairs(const uint16_t* from, int64_t stride, int64_t count,
                                const Shared& shared, uint32_t* to) {
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      int64_t d = 0;
      for (; i + kLanes <= count && d + 2 * kLanes <= shared.dim; d += 2 * kLanes)
        Ops::transpose_words(from + i * stride + d, stride, to + d / 2 * kBlock + i, kBlock);
      for (; d < shared.padded; d += 2) {
        for (int64_t r = i; r < i + kLanes; ++r) {
          const uint32_t low = r < count && d < shared.dim ? from[r * stride + d] : 0;
          const uint32_t high = r < count && d + 1 < shared.dim ? from[r * stride + d + 1] : 0;
          to[d / 2 * kBlock + r] = low | high << 16;
        }
      }
    }
  }

  static void pack_keys(const PackTask& task) {
    const Shared& shared = task.shared;
    auto* const second = task.tiles + kBlock * shared.padded;
    pack_rows(task.k.data, task.k.stride, task.count, shared, task.tiles);
    if (task.for_backward == 0) {
      pack_row_pairs(task.v.data, task.v.stride, task.count, shared,
                     reinterpret_cast<uint32_t*>(second));
      return;
    }
    pack_rows(task.v.data, task.v.stride, task.count, shared, second);
    pack_row_pairs(task.k.data, task.k.stride, task.count, shared,
                   reinterpret_cast<uint32_t*>(second + kBlock * shared.padded));
  }

  /// c [m,n] (+)= a b over k pairs: a(i,p) is the word a[i * a_row + p * a_column], b [k,n] words.
  /// m a multiple of 8, n of 32.
  struct Product {
    int64_t m, n, k;
    const uint32_t* a;
    int64_t a_row, a_column;
    const uint32_t* b;
    int64_t b_row;
    float* c;
    int64_t c_row;
  };
  enum class Write { kSet, kAdd };

  static void multiply(const Product& p, Write write) {
    constexpr int kRows = 8;
    for (int64_t j = 0; j < p.n; j += 2 * kLanes) {
      for (int64_t i = 0; i < p.m; i += kRows) {
        V left[kRows], right[kRows];
        float* const c = p.c + i * p.c_row + j;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          left[r] = write == Write::kAdd ? Ops::load(c + r * p.c_row) : Ops::set(0.0f);
          right[r] = write == Write::kAdd ? Ops::load(c + r * p.c_row + kLanes) : Ops::set(0.0f);
        }
        for (int64_t k = 0; k < p.k; ++k) {
          const auto b0 = Ops::load_pairs(p.b + k * p.b_row + j);
          const auto b1 = Ops::load_pairs(p.b + k * p.b_row + j + kLanes);
          const uint32_t* const a = p.a + i * p.a_row + k * p.a_column;
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const auto pair = Ops::set_pair(a[r * p.a_row]);
            left[r] = Ops::dot_pairs(left[r], pair, b0);
            right[r] = Ops::dot_pairs(right[r], pair, b1);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          Ops::store(c + r * p.c_row, left[r]);
          Ops::store(c + r * p.c_row + kLanes, right[r]);
        }
      }
    }
  }

  // On the diagonal, queries below the half see no key above it: of scores [keys, queries] and
  // their gradients a quarter is neither computed nor used.
  static constexpr int64_t kHalf = kBlock / 2;

  static void multiply_scores(const Product& p, bool diagonal) {
    if (!diagonal)
      return multiply(p, Write::kSet);
    Product left = p, right = p;
    left.m = left.n = right.n = kHalf;
    right.b += kHalf;
    right.c += kHalf;
    multiply(left, Write::kSet);
    multiply(right, Write::kSet);
  }
  // Sums over keys: the first queries have no more than half of them.
  static void add_over_keys(const Product& p, bool diagonal) {
    if (!diagonal || p.m <= kHalf)
      return multiply(diagonal ? first_half(p) : p, Write::kAdd);
    Product last = p;
    last.m -= kHalf;
    last.a += kHalf * p.a_row;
    last.c += kHalf * p.c_row;
    multiply(first_half(p), Write::kAdd);
    multiply(last, Write::kAdd);
  }
  static Product first_half(Product p) {
    p.m = p.m < kHalf ? p.m : kHalf;
    p.k = kHalf / 2;
    return p;
  }
  // Sums over queries: the last keys are seen by half of them.
  static void sum_over_queries(const Product& p, bool diagonal, Write write) {
    if (!diagonal)
      return multiply(p, write);
    Product first = p, last = p;
    first.m = last.m = kHalf;
    last.k = kHalf / 2;
    last.a += kHalf * p.a_row + kHalf / 2 * p.a_column;
    last.b += kHalf / 2 * p.b_row;
    last.c += kHalf * p.c_row;
    multiply(first, write);
    multiply(last, write);
  }

  // As exp_f32 of simd-inl.h: Ops::max and min return their second operand when one is NaN.
  static V exp(V x) {
    const V clamped = Ops::min(Ops::set(100.0f), Ops::max(Ops::set(-110.0f), x));
    const V n = Ops::round(Ops::mul(clamped, Ops::set(1.44269504088896341f)));
    V r = Ops::fma(n, Ops::set(-0.693359375f), clamped);
    r = Ops::fma(n, Ops::set(2.12194440e-4f), r);
    V p = Ops::set(1.9875691500e-4f);
    p = Ops::fma(p, r, Ops::set(1.3981999507e-3f));
    p = Ops::fma(p, r, Ops::set(8.3334519073e-3f));
    p = Ops::fma(p, r, Ops::set(4.1665795894e-2f));
    p = Ops::fma(p, r, Ops::set(1.6666665459e-1f));
    p = Ops::fma(p, r, Ops::set(5.0000001201e-1f));
    p = Ops::add(Ops::fma(Ops::mul(r, r), p, r), Ops::set(1.0f));
    return Ops::scale_by_power_of_two(p, n);
  }

  // Lanes of vector group g inside the columns keep `value`, the others get `other`.
  static V keep(Columns columns, int64_t g, V value, V other) {
    const int64_t low = columns.low - g * kLanes, high = columns.high - g * kLanes;
    const auto bits = [](int64_t n) {
      return n <= 0 ? 0u : n >= kLanes ? 0xffffu : (1u << n) - 1u;
    };
    return Ops::select(bits(high) & ~bits(low), value, other);
  }

  static constexpr float kMinusInfinity = -__builtin_inff();

  struct QueryTiles {
    uint32_t* q;    // [W/2,64] pairs of columns
    float* out;     // [64,W]
    float* scores;  // [64 keys, 64 queries]
    uint32_t* p;    // [32,64] pairs of keys
    float* max;     // [64]
    float* sum;
    float* shrink;
  };

  // Scores of one block of keys become probabilities relative to the new maxima.
  static void softmax_block(const QueryTask& task, const KeyBlock& block, const QueryTiles& t) {
    const V none = Ops::set(kMinusInfinity), scale = Ops::set(task.shared.scale);
    const bool all = sees_all(block, task.first, task.rows, task.shared.window);
    for (int64_t g = 0; g < kGroups; ++g) {
      const V before = Ops::load(t.max + g * kLanes);
      V max = before;
      for (int64_t j = 0; j < kBlock; ++j) {
        float* const score = t.scores + j * kBlock + g * kLanes;
        V value = Ops::mul(Ops::load(score), scale);
        if (!all)
          value = keep(columns_of_key(block, j, task.first, task.rows, task.shared.window), g,
                       value, none);
        Ops::store(score, value);
        max = Ops::max(max, value);
      }
      // No key so far: any shift will do, every term is exp(-infinity).
      const V shift = Ops::replace_minus_infinity(max);
      const V shrink = exp(Ops::sub(before, shift));
      V sum = Ops::mul(Ops::load(t.sum + g * kLanes), shrink);
      for (int64_t j = 0; j < kBlock; j += 2) {
        const float* const score = t.scores + j * kBlock + g * kLanes;
        const V even = exp(Ops::sub(Ops::load(score), shift));
        const V odd = exp(Ops::sub(Ops::load(score + kBlock), shift));
        sum = Ops::add(sum, Ops::add(even, odd));
        Ops::store_pairs(t.p + j / 2 * kBlock + g * kLanes, even, odd);
      }
      Ops::store(t.max + g * kLanes, max);
      Ops::store(t.sum + g * kLanes, sum);
      Ops::store(t.shrink + g * kLanes, shrink);
    }
  }

  static void store_row(const float* from, V factor, int64_t dim, uint16_t* to) {
    float tail[2 * kLanes];
    uint16_t narrow[2 * kLanes];
    for (int64_t d = 0; d < dim; d += 2 * kLanes) {
      const V low = Ops::mul(Ops::load(from + d), factor);
      const V high = Ops::mul(Ops::load(from + d + kLanes), factor);
      if (d + 2 * kLanes <= dim) {
        Ops::store_bf16(to + d, low, high);
        continue;
      }
      Ops::store(tail, low);
      Ops::store(tail + kLanes, high);
      Ops::store_bf16(narrow, low, high);
      for (int64_t i = 0; d + i < dim; ++i)
        to[d + i] = narrow[i];
    }
  }

  static void query_block(const QueryTask& task) {
    const Shared& s = task.shared;
    const int64_t padded = s.padded;
    QueryTiles t;
    t.out = s.scratch;
    t.scores = t.out + kBlock * padded;
    t.max = t.scores + kBlock * kBlock;
    t.sum = t.max + kBlock;
    t.shrink = t.sum + kBlock;
    t.q = reinterpret_cast<uint32_t*>(t.shrink + kBlock);
    t.p = t.q + 32 * padded;
    pack_column_pairs(task.q.data, task.q.stride, task.rows, s, t.q);
    for (int64_t i = 0; i < kBlock * padded; ++i)
      t.out[i] = 0.0f;
    for (int64_t i = 0; i < kBlock; ++i) {
      t.max[i] = kMinusInfinity;
      t.sum[i] = 0.0f;
    }
    const int64_t rows8 = (task.rows + 7) / 8 * 8;
    for (int64_t b = 0; b < s.num_blocks; ++b) {
      const auto* const k = reinterpret_cast<const uint32_t*>(s.blocks[b].tiles);
      const uint32_t* const v = k + 32 * padded;
      const bool diagonal = s.blocks[b].is_prefix == 0 && s.blocks[b].first == task.first;
      multiply_scores({kBlock, kBlock, padded / 2, k, padded / 2, 1, t.q, kBlock, t.scores, kBlock},
                      diagonal);
      softmax_block(task, s.blocks[b], t);
      for (int64_t i = 0; i < rows8; ++i) {
        const V shrink = Ops::set(t.shrink[i]);
        for (int64_t d = 0; d < padded; d += kLanes)
          Ops::store(t.out + i * padded + d, Ops::mul(Ops::load(t.out + i * padded + d), shrink));
      }
      add_over_keys({rows8, padded, kBlock / 2, t.p, 1, kBlock, v, padded, t.out, padded},
                    diagonal);
    }
    for (int64_t i = 0; i < task.rows; ++i) {
      store_row(t.out + i * padded, Ops::set(1.0f / t.sum[i]), s.dim,
                task.out.data + i * task.out.stride);
      if (task.lse != nullptr)
        task.lse[i * task.lse_stride] = t.max[i] + __builtin_logf(t.sum[i]);
    }
  }

  // Everything of one block of queries, packed once per task.
  struct QuerySide {
    uint32_t *q, *dout;              // [W/2,64] pairs of columns
    uint32_t *q_pairs, *dout_pairs;  // [32,W] pairs of rows
    float* dq;                       // [64,W]
    float *lse, *dot;                // [64]
  };
  static QuerySide query_side(const HeadTask& task, int64_t block) {
    const int64_t padded = task.shared.padded;
    float* const base = task.shared.scratch + block * (192 * padded + 2 * kBlock);
    QuerySide side;
    side.q = reinterpret_cast<uint32_t*>(base);
    side.dout = side.q + 32 * padded;
    side.q_pairs = side.dout + 32 * padded;
    side.dout_pairs = side.q_pairs + 32 * padded;
    side.dq = base + 128 * padded;
    side.lse = side.dq + kBlock * padded;
    side.dot = side.lse + kBlock;
    return side;
  }

  static float widen(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
  }

  static float dot(const uint16_t* a, const uint16_t* b, int64_t dim) {
    V sums = Ops::set(0.0f);
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes)
      sums = Ops::fma(Ops::widen(a + d), Ops::widen(b + d), sums);
    float sum = Ops::sum(sums);
    for (; d < dim; ++d)
      sum += widen(a[d]) * widen(b[d]);
    return sum;
  }

  static void load_query_side(const HeadTask& task, int64_t block) {
    const int64_t first = block * kBlock;
    const int64_t rows = task.length - first < kBlock ? task.length - first : kBlock;
    const QuerySide side = query_side(task, block);
    const uint16_t* const q = task.q.data + first * task.q.stride;
    const uint16_t* const dout = task.dout.data + first * task.dout.stride;
    const uint16_t* const out = task.out.data + first * task.out.stride;
    pack_column_pairs(q, task.q.stride, rows, task.shared, side.q);
    pack_column_pairs(dout, task.dout.stride, rows, task.shared, side.dout);
    pack_row_pairs(q, task.q.stride, rows, task.shared, side.q_pairs);
    pack_row_pairs(dout, task.dout.stride, rows, task.shared, side.dout_pairs);
    for (int64_t i = 0; i < kBlock * task.shared.padded; ++i)
      side.dq[i] = 0.0f;
    for (int64_t i = 0; i < kBlock; ++i) {
      side.dot[i] =
          i < rows ? dot(dout + i * task.dout.stride, out + i * task.out.stride, task.shared.dim)
                   : 0.0f;
      side.lse[i] = i < rows ? task.lse[(first + i) * task.lse_stride] : 0.0f;
    }
  }

  struct PairTiles {
    float *p, *ds;       // [64 keys, 64 queries], scores and dP before
    uint32_t* p_rows;    // [64,32] pairs of queries
    uint32_t* ds_rows;   // [64,32]
    uint32_t* ds_pairs;  // [32,64] pairs of keys
    float *dk, *dv;      // [64,W]
  };
  static PairTiles pair_tiles(const HeadTask& task) {
    const int64_t blocks = (task.length + kBlock - 1) / kBlock;
    PairTiles t;
    t.p = task.shared.scratch + blocks * (192 * task.shared.padded + 2 * kBlock);
    t.ds = t.p + kBlock * kBlock;
    t.dk = t.ds + kBlock * kBlock;
    t.dv = t.dk + kBlock * task.shared.padded;
    t.p_rows = reinterpret_cast<uint32_t*>(t.dv + kBlock * task.shared.padded);
    t.ds_rows = t.p_rows + 32 * kBlock;
    t.ds_pairs = t.ds_rows + 32 * kBlock;
    return t;
  }

  // p = exp(scale * score - lse), ds = scale * p * (dP - dot), in the forms the products read.
  static void probabilities(const HeadTask& task, const KeyBlock& block, int64_t first,
                            const QuerySide& side, const PairTiles& t) {
    const V zero = Ops::set(0.0f), scale = Ops::set(task.shared.scale);
    const int64_t rows = task.length - first < kBlock ? task.length - first : kBlock;
    const bool all = sees_all(block, first, rows, task.shared.window);
    for (int64_t j = 0; j < kBlock; ++j) {
      const Columns columns =
          all ? Columns{0, kBlock} : columns_of_key(block, j, first, rows, task.shared.window);
      for (int64_t g = 0; g < kGroups; ++g) {
        const int64_t at = j * kBlock + g * kLanes;
        const V lse = Ops::load(side.lse + g * kLanes), dot = Ops::load(side.dot + g * kLanes);
        const V p = exp(Ops::sub(Ops::mul(Ops::load(t.p + at), scale), lse));
        const V ds = Ops::mul(Ops::mul(p, Ops::sub(Ops::load(t.ds + at), dot)), scale);
        Ops::store(t.p + at, all ? p : keep(columns, g, p, zero));
        Ops::store(t.ds + at, all ? ds : keep(columns, g, ds, zero));
      }
      for (int64_t half = 0; half < kBlock; half += 2 * kLanes) {
        const int64_t at = j * kBlock + half;
        Ops::store_bf16(reinterpret_cast<uint16_t*>(t.p_rows) + at, Ops::load(t.p + at),
                        Ops::load(t.p + at + kLanes));
        Ops::store_bf16(reinterpret_cast<uint16_t*>(t.ds_rows) + at, Ops::load(t.ds + at),
                        Ops::load(t.ds + at + kLanes));
      }
      for (int64_t g = 0; j % 2 == 1 && g < kGroups; ++g) {
        const float* const odd = t.ds + j * kBlock + g * kLanes;
        Ops::store_pairs(t.ds_pairs + j / 2 * kBlock + g * kLanes, Ops::load(odd - kBlock),
                         Ops::load(odd));
      }
    }
  }

  static void backward_key_block(const HeadTask& task, const KeyBlock& block, const PairTiles& t) {
    const int64_t padded = task.shared.padded, window = task.shared.window;
    const auto* const k = reinterpret_cast<const uint32_t*>(block.tiles);
    const uint32_t* const v = k + 32 * padded;
    const uint32_t* const k_pairs = v + 32 * padded;
    const bool prefix = block.is_prefix != 0;
    int64_t end = task.length;
    if (!prefix && window > 0 && block.first + block.count - 1 + window < end)
      end = block.first + block.count - 1 + window;
    const int64_t begin = prefix ? 0 : block.first / kBlock * kBlock;
    Write write = Write::kSet;
    for (int64_t first = begin; first < end; first += kBlock) {
      const QuerySide side = query_side(task, first / kBlock);
      const bool diagonal = !prefix && first == block.first;
      multiply_scores({kBlock, kBlock, padded / 2, k, padded / 2, 1, side.q, kBlock, t.p, kBlock},
                      diagonal);
      multiply_scores(
          {kBlock, kBlock, padded / 2, v, padded / 2, 1, side.dout, kBlock, t.ds, kBlock},
          diagonal);
      probabilities(task, block, first, side, t);
      sum_over_queries({kBlock, padded, 32, t.p_rows, 32, 1, side.dout_pairs, padded, t.dv, padded},
                       diagonal, write);
      sum_over_queries({kBlock, padded, 32, t.ds_rows, 32, 1, side.q_pairs, padded, t.dk, padded},
                       diagonal, write);
      add_over_keys({kBlock, padded, 32, t.ds_pairs, 1, kBlock, k_pairs, padded, side.dq, padded},
                    diagonal);
      write = Write::kAdd;
    }
    for (int64_t i = 0; i < block.count * padded; ++i) {
      block.dk[i] = t.dk[i];
      block.dv[i] = t.dv[i];
    }
  }

  static void backward_head(const HeadTask& task) {
    const int64_t blocks = (task.length + kBlock - 1) / kBlock;
    for (int64_t block = 0; block < blocks; ++block)
      load_query_side(task, block);
    const PairTiles t = pair_tiles(task);
    for (int64_t b = 0; b < task.shared.num_blocks; ++b)
      backward_key_block(task, task.shared.blocks[b], t);
    for (int64_t i = 0; i < task.length; ++i)
      store_row(query_side(task, i / kBlock).dq + i % kBlock * task.shared.padded, Ops::set(1.0f),
                task.shared.dim, task.dq.data + i * task.dq.stride);
  }
};

}  // namespace shardtune::kernels::bf16
