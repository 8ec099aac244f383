// Cached keys and values of generation. Each sequence owns one buffer for all layers, which grows
// in blocks as tokens arrive; BatchKvCache puts the sequences of one forward pass together and is
// what the model sees. Rows are rotated keys, oldest first. (Prefix rows of an adapter, once there
// is one, stand at the front: attention sees the rows before a chunk as a prefix already.)
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
  int64_t capacity() const { return capacity_; }
  /// Room for `tokens` rows in all; keeps what is there.
  void reserve(int64_t tokens);
  /// Copies rows behind the cached ones; every layer once, then advance().
  void append(int layer, const TensorView& k, const TensorView& v);
  void advance(int64_t tokens) { length_ += tokens; }
  /// Forgets all rows from `tokens` on.
  void truncate(int64_t tokens);

  /// Rows [0, rows) of a layer, [rows, Hk*D].
  TensorView keys(int layer, int64_t rows) const { return view(layer, 0, rows); }
  TensorView values(int layer, int64_t rows) const { return view(layer, 1, rows); }

 private:
  TensorView view(int layer, int which, int64_t rows) const;

  KvLayout layout_;
  Tensor buffer_;
  int64_t length_ = 0;
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
};

}  // namespace shardtune::inference
