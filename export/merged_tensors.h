// The tensors of a model with an adapter's change merged in, computed by blocks of rows, so that
// never more than a block is held in fp32.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "export/exporter.h"

namespace shardtune::exporting {

/// One tensor of the merged model. linear is set when it is the weight of a linear.
struct MergedTensor {
  std::string name;
  std::vector<int64_t> shape;
  const models::BaseLinear* linear = nullptr;
  const models::BaseLinear* bias_of = nullptr;  // a bias that the adapter may change
  const models::VocabularyTable* table = nullptr;
  ParameterId trained = kNoParameter;  // a norm or bias that holds what was trained
  std::string source;                  // the base's name of it
  bool has_delta = false;              // not where the base holds the change already (merge-aware)
  adapters::Adapter::Table changed_table{};  // of a table with a delta

  int64_t num_rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t row_length() const { return shape.size() < 2 ? 1 : shape[1]; }
  int64_t numel() const { return num_rows() * row_length(); }
};

/// Rows of a merged tensor in fp32, and what the adapter changed of them (empty without a change).
struct MergedRows {
  TensorView rows;
  TensorView delta;
};
/// The same, held.
struct OwnedRows {
  Tensor rows;
  Tensor delta;
};

/// How much of the change survives rounding to the exported dtype: relative error
/// ||round(W+D) - (W+D)|| / ||D|| over all tensors that have one.
struct DeltaError {
  double error_square_sum = 0.0;
  double delta_square_sum = 0.0;
  /// Counts one element: as it is stored, before rounding, and what of it is the adapter's change.
  void add(double stored, double exact, double change) {
    error_square_sum += (stored - exact) * (stored - exact);
    delta_square_sum += change * change;
  }
  double relative() const;
};

/// Whether embedding and head are one table in the model, and two when the adapter is merged.
bool splits_tied_head(const ExportRequest& request);

class MergedTensors {
 public:
  /// UnsupportedError: an adapter that cannot be merged into weights.
  explicit MergedTensors(const ExportRequest& request);

  const std::vector<MergedTensor>& tensors() const { return tensors_; }
  /// Rows [begin, end). Its unit is leased meanwhile.
  OwnedRows read_rows(const MergedTensor& tensor, int64_t begin, int64_t end) const;
  /// Hands the merged rows to `visit` in order, some at a time: a multiple of row_multiple but at
  /// the end.
  void for_each_rows(const MergedTensor& tensor, int64_t row_multiple,
                     const std::function<void(const MergedRows&)>& visit) const;
  /// Hands the rounded bytes of a tensor to `sink`, in order. W + D is computed in fp32 and rounded
  /// once. Adds to `error` where the tensor has a delta.
  /// Errors  NonFiniteError: a value that is NaN or infinite in the exported dtype
  void stream(const MergedTensor& tensor,
              const std::function<void(std::span<const std::byte>)>& sink, DeltaError& error) const;

 private:
  void add(std::string name, const models::BaseLinear* linear);
  void add(const models::VocabularyTable& table);
  using Table = adapters::Adapter::Table;
  void add_tied_head();
  void take_change(Table table, MergedTensor& tensor) const;
  void read_base(const MergedTensor& tensor, int64_t begin, int64_t end,
                 const TensorView& out) const;
  /// Merges base rows in place; `delta` is what that changed.
  void merge(const MergedTensor& tensor, int64_t begin, int64_t end, const TensorView& rows,
             const TensorView& delta) const;

  const ExportRequest& request_;
  std::vector<MergedTensor> tensors_;
};

}  // namespace shardtune::exporting
