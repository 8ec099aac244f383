// The embedding table or the head: [V, H] cut into fixed vocabulary chunks, each a dense
// FrozenWeight in a unit of its own, so that a head never needs the whole table at once. A tied
// model has one table and uses it twice.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "core/parameter_store.h"
#include "quant/frozen_weight.h"

namespace shardtune::models {

struct TableShape {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  DType compute = DType::kFloat32;  // of activations
  bool is_trained = false;
};

class VocabularyTable {
 public:
  static constexpr int64_t kChunkRows = 8192;

  /// Declares the chunks; `name` is the checkpoint's tensor name.
  VocabularyTable(ParameterStore& store, const std::string& name, const TableShape& shape);

  const std::string& name() const { return name_; }
  int64_t vocab_size() const { return shape_.vocab_size; }
  int64_t hidden_size() const { return shape_.hidden_size; }
  bool is_trained() const { return shape_.is_trained; }
  int64_t num_chunks() const { return static_cast<int64_t>(chunks_.size()); }
  int64_t chunk_begin(int64_t chunk) const { return chunk * kChunkRows; }
  const quant::FrozenWeight& chunk(int64_t index) const { return *chunks_[index]; }
  ParameterStore& store() const { return *store_; }

  /// Model::add_head_columns.
  void add_columns(std::vector<ParameterId> chunks) { columns_ = std::move(chunks); }
  bool has_columns() const { return !columns_.empty(); }
  ParameterId columns(int64_t chunk) const { return columns_[static_cast<size_t>(chunk)]; }
  int64_t num_columns() const {
    return has_columns() ? store_->spec(columns_.front()).shape[1] : 0;
  }

  /// Of the whole table while it is leased.
  int64_t num_bytes() const;
  /// The units of a lookup in a walk: those of the chunks where it is trained, else kFetchRows.
  std::vector<UnitId> lookup_units() const;

  void load(const quant::RowSource& rows, quant::LoadBuffers& buffers);
  void load(const quant::RowSource& rows) {
    quant::LoadBuffers buffers;
    load(rows, buffers);
  }
  /// Rows [begin, end) in f32, leasing the chunks they lie in.
  void read_rows(int64_t begin, int64_t end, const TensorView& out) const;
  /// out [n,H] f32 | bf16 = rows of a frozen table, fetched through the store: one fetch_rows() of
  /// a walk, whatever the ids.
  void lookup(std::span<const int32_t> ids, const TensorView& out) const;
  /// Rows of the table [n,H] f32, frozen or trained.
  autograd::Variable embed(autograd::Tape& tape, std::span<const int32_t> ids) const;

 private:
  ParameterStore* store_;
  std::string name_;
  TableShape shape_;
  std::vector<std::unique_ptr<quant::FrozenWeight>> chunks_;
  std::vector<ParameterId> columns_;  // by chunk; empty: none
};

}  // namespace shardtune::models
