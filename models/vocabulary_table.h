// The embedding table or the head: [V, H] cut into fixed vocabulary chunks, each a dense
// FrozenWeight in a unit of its own, so that a head never needs the whole table at once. A tied
// model has one table and uses it twice.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameter_store.h"
#include "quant/frozen_weight.h"

namespace shardtune::models {

class VocabularyTable {
 public:
  static constexpr int64_t kChunkRows = 8192;

  /// Declares the chunks; `name` is the checkpoint's tensor name.
  VocabularyTable(ParameterStore& store, const std::string& name, int64_t vocab_size,
                  int64_t hidden_size, DType compute);

  const std::string& name() const { return name_; }
  int64_t vocab_size() const { return vocab_size_; }
  int64_t hidden_size() const { return hidden_size_; }
  int64_t num_chunks() const { return static_cast<int64_t>(chunks_.size()); }
  int64_t chunk_begin(int64_t chunk) const { return chunk * kChunkRows; }
  const quant::FrozenWeight& chunk(int64_t index) const { return *chunks_[index]; }
  ParameterStore& store() const { return *store_; }

  /// Of the whole table, as the store keeps it.
  int64_t num_bytes() const { return vocab_size_ * hidden_size_ * size_of(compute_); }

  void load(const quant::RowSource& rows);
  /// out [n,H] f32 | bf16 = rows of the table, fetched through the store: one fetch_rows() of a
  /// walk, whatever the ids.
  void lookup(std::span<const int32_t> ids, const TensorView& out) const;

 private:
  ParameterStore* store_;
  std::string name_;
  int64_t vocab_size_;
  int64_t hidden_size_;
  DType compute_;  // of the rows: chunks are dense
  std::vector<std::unique_ptr<quant::FrozenWeight>> chunks_;
};

}  // namespace shardtune::models
