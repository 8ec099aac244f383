// Cached keys and values of generation. Each sequence owns one buffer for all layers, which grows
// in blocks as tokens arrive; BatchKvCache puts the sequences of one forward pass together and is
// what the model sees. Rows are rotated keys, oldest first; an adapter's prefix rows stand at the
// front, and attention sees all rows before a chunk as a prefix.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/token_batch.h"
#include "kernels/attention.h"
#include "models/model.h"

namespace shardtune::inference {

/// What the buffers look like; the same for all sequences of a model.
struct KvLayout {
  int64_t num_layers = 0;
  DType dtype = DType::kFloat32;                   // the compute dtype
  std::vector<kernels::AttentionShape> attention;  // of each layer: heads alike, perhaps windows

  int64_t row_features() const { return attention[0].num_kv_heads * attention[0].head_dim; }
  int64_t bytes_per_token() const { return num_layers * 2 * row_features() * size_of(dtype); }
};
KvLayout kv_layout(const models::Model& model);

/// Keys and values of one sequence.
/// Shapes  buffer [num_layers, 2, capacity, Hk*D]
class SequenceKv {
 public:
  static constexpr int64_t kBlockTokens = 64;

  explicit SequenceKv(const KvLayout& layout) : layout_(layout) {}

  int64_t length() const { return length_; }
  /// Of length(), the rows before the first token that are virtual tokens'.
  int64_t num_virtual_tokens() const { return num_virtual_tokens_; }
  /// Of length(), the others.
  int64_t num_tokens() const { return length_ - num_virtual_tokens_; }
  void set_num_virtual_tokens(int64_t count) { num_virtual_tokens_ = count; }
  int64_t capacity() const { return capacity_; }
  /// Room for `tokens` rows in all; keeps what is there.
  void reserve(int64_t tokens);
  /// Copies rows behind the cached ones; every layer once, then advance().
  void append(int layer, const TensorView& k, const TensorView& v);
  void advance(int64_t tokens) { length_ += tokens; }
  /// Keeps the first `tokens` of num_tokens(), and what adapters put before them.
  void truncate(int64_t tokens);

  /// Rows of an adapter's prefix before the tokens, in every layer; not counted in length(). Before
  /// the first token.
  int64_t num_prefix_rows() const { return num_prefix_rows_; }
  void set_prefix(int layer, const TensorView& k, const TensorView& v);

  /// Rows [0, rows) of a layer, [rows, Hk*D].
  TensorView keys(int layer, int64_t rows) const { return view(layer, 0, rows); }
  TensorView values(int layer, int64_t rows) const { return view(layer, 1, rows); }

 private:
  TensorView view(int layer, int which, int64_t rows) const;

  KvLayout layout_;
  Tensor buffer_;
  int64_t length_ = 0;
  int64_t num_prefix_rows_ = 0;
  int64_t num_virtual_tokens_ = 0;
  int64_t capacity_ = 0;
};

/// The cache of one forward pass. Use: begin() with the sequences in order of the batch's samples,
/// Model::forward, end().
class BatchKvCache : public models::KvCache {
 public:
  explicit BatchKvCache(const KvLayout& layout) : layout_(layout) {}

  /// sequences[s] gets the tokens [sample_offsets[s], sample_offsets[s+1]) of the batch. Both spans
  /// must live until end().
  void begin(std::span<SequenceKv* const> sequences, std::span<const int32_t> sample_offsets);
  void end();

  int64_t past_length(int64_t sample) const override;
  void set_prefix(int layer, const TensorView& prefix_k, const TensorView& prefix_v) override;
  void add_virtual_tokens(int64_t count, std::span<const int32_t> sample_offsets) override;
  void attend(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
              const TensorView& out) override;

 private:
  int64_t new_tokens(size_t sample) const;
  void attend_single_tokens(int layer, const TensorView& q, const TensorView& out) const;
  void attend_chunk(int layer, size_t sample, const TensorView& q, const TensorView& out) const;
  void attend_chunk_in_window(int layer, size_t sample, const TensorView& q,
                              const TensorView& out) const;

  KvLayout layout_;
  std::span<SequenceKv* const> sequences_;
  std::span<const int32_t> sample_offsets_;
  std::vector<int32_t> wide_offsets_;  // with virtual tokens
};

}  // namespace shardtune::inference
