#include "export/merged_tensors.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "models/vocabulary_table.h"

namespace shardtune::exporting {
namespace {

constexpr int64_t kBlockElements = 1 << 20;

void round_to(DType dtype, std::span<const float> from, const TensorView& to,
              const std::string& name) {
  for (size_t i = 0; i < from.size(); ++i) {
    float rounded = from[i];
    if (dtype == DType::kBFloat16) {
      to.data<BFloat16>()[i] = BFloat16(from[i]);
      rounded = to.data<BFloat16>()[i];
    } else {
      to.data<float>()[i] = from[i];
    }
    if (!std::isfinite(rounded))
      throw NonFiniteError(name + ": element that is NaN or infinite as " +
                           std::string(name_of(dtype)) +
                           " in the merged weights; nothing was written. Check the base and the "
                           "adapter, or export with --dtype float32.");
  }
}

float value_at(const TensorView& view, int64_t i) {
  return view.dtype() == DType::kBFloat16 ? static_cast<float>(view.data<BFloat16>()[i])
                                          : view.data<float>()[i];
}

}  // namespace

double DeltaError::relative() const {
  return delta_square_sum > 0.0 ? std::sqrt(error_square_sum / delta_square_sum) : 0.0;
}

MergedTensors::MergedTensors(const ExportRequest& request) : request_(request) {
  if (request.adapter != nullptr && !request.adapter->mergeable()) {
    const std::string reason = request.adapter->why_not_mergeable();
    throw UnsupportedError("export: an adapter of method '" +
                           std::string(request.adapter->method()) +
                           "' cannot be merged into weights" +
                           (reason.empty() ? "" : ": " + reason) + ". Use --to peft.");
  }
  std::set<std::string> known;
  std::map<std::string, const models::BaseLinear*> biases;
  for (const models::BaseLinear* linear : request.model.linears()) {
    add(linear->path() + ".weight", linear);
    known.insert(linear->path() + ".weight");
    biases.emplace(linear->path() + ".bias", linear);
  }
  // Tables are cut into chunks and have no parameter of their own name; norms and biases have. A
  // tied head's tensor, which some files hold too, is left out.
  known.insert("lm_head.weight");
  for (const models::VocabularyTable* table : request.model.tables()) {
    known.insert(table->name());
    add(*table);
  }
  if (splits_tied_head(request))
    add_tied_head();
  ParameterStore& store = request.model.store();
  for (int32_t i = 0; i < store.num_parameters(); ++i) {
    const ParameterSpec& spec = store.spec(ParameterId{i});
    if (request.source.has(spec.name) && known.insert(spec.name).second) {
      add(spec.name, nullptr);
      if (spec.kind == ParameterKind::kTrainable)
        tensors_.back().trained = ParameterId{i};
      const auto bias = biases.find(spec.name);
      if (bias != biases.end() && request.adapter != nullptr &&
          request.adapter->wraps(*bias->second))
        tensors_.back().bias_of = bias->second;
    }
  }
}

void MergedTensors::add(std::string name, const models::BaseLinear* linear) {
  MergedTensor tensor;
  tensor.shape = request_.source.shape(name);
  tensor.name = std::move(name);
  tensor.source = tensor.name;
  tensor.linear = linear;
  const bool is_in_base = request_.provenance.merge_aware.has_value() &&
                          request_.options.merge_base == MergeBase::kTrained;
  tensor.has_delta = linear != nullptr && request_.adapter != nullptr &&
                     request_.adapter->wraps(*linear) && !is_in_base;
  tensors_.push_back(std::move(tensor));
}

// The head of a tied model that was given one of its own has the embedding's values in the file.
void MergedTensors::add(const models::VocabularyTable& table) {
  const auto tables = request_.model.tables();
  const bool is_split_head = request_.source.config().tie_word_embeddings &&
                             &table == &request_.model.head() && &table != tables.front();
  MergedTensor& tensor = tensors_.emplace_back();
  tensor.name = table.name();
  tensor.source = is_split_head ? tables.front()->name() : table.name();
  tensor.shape = {table.vocab_size(), table.hidden_size()};
  tensor.table = &table;
  if (&table == tables.front())
    take_change(Table::kEmbedding, tensor);
  else if (&table == &request_.model.head())
    take_change(Table::kHead, tensor);
}

// Embedding and head are one table here, and two in what is written.
void MergedTensors::add_tied_head() {
  const models::VocabularyTable& table = request_.model.head();
  MergedTensor& tensor = tensors_.emplace_back();
  tensor.name = "lm_head.weight";
  tensor.source = table.name();
  tensor.shape = {table.vocab_size(), table.hidden_size()};
  tensor.table = &table;
  take_change(Table::kHead, tensor);
}

void MergedTensors::take_change(Table table, MergedTensor& tensor) const {
  tensor.changed_table = table;
  tensor.has_delta = request_.adapter != nullptr && request_.adapter->changes(table);
}

bool splits_tied_head(const ExportRequest& request) {
  return request.adapter != nullptr && &request.model.head() == request.model.tables().front() &&
         (request.adapter->changes(adapters::Adapter::Table::kEmbedding) ||
          request.adapter->changes(adapters::Adapter::Table::kHead));
}

void MergedTensors::read_base(const MergedTensor& tensor, int64_t begin, int64_t end,
                              const TensorView& out) const {
  if (tensor.table != nullptr && tensor.table->is_trained())
    return tensor.table->read_rows(begin, end, out);
  if (tensor.trained != kNoParameter) {
    const auto values = request_.model.store().value(tensor.trained).span<const float>();
    std::ranges::copy(values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                      out.data<float>());
    return;
  }
  if (tensor.linear != nullptr && tensor.linear->is_trained())
    return tensor.linear->dequantize_rows(begin, end, out);
  // An unquantised base is taken from the file: the loaded one is rounded to the compute dtype.
  const bool is_dequantised = tensor.linear != nullptr &&
                              request_.options.merge_base == MergeBase::kTrained &&
                              request_.provenance.quantization.method != "none";
  if (is_dequantised)
    tensor.linear->dequantize_rows(begin, end, out);
  else
    request_.source.read_rows(tensor.source, begin, end, out.data<float>());
}

void MergedTensors::merge(const MergedTensor& tensor, int64_t begin, int64_t end,
                          const TensorView& rows, const TensorView& delta) const {
  const auto merged = rows.span<float>();
  const auto before = delta.span<float>();
  std::ranges::copy(merged, before.begin());
  if (tensor.linear != nullptr)
    request_.adapter->merge_rows(*tensor.linear, begin, end, rows);
  else
    request_.adapter->merge_table_rows(tensor.changed_table, begin, end, rows);
  for (size_t i = 0; i < merged.size(); ++i)
    before[i] = merged[i] - before[i];
}

OwnedRows MergedTensors::read_rows(const MergedTensor& tensor, int64_t begin, int64_t end) const {
  UnitLease lease;
  const models::BaseLinear* linear = tensor.linear != nullptr ? tensor.linear : tensor.bias_of;
  if (linear != nullptr)
    lease = request_.model.store().acquire(linear->unit(), Pass::kForward);
  else if (tensor.trained != kNoParameter)
    lease = request_.model.store().acquire(request_.model.store().spec(tensor.trained).unit,
                                           Pass::kForward);
  OwnedRows owned;
  owned.rows = Tensor(Shape{end - begin, tensor.row_length()}, DType::kFloat32);
  read_base(tensor, begin, end, owned.rows);
  // A bias is shorter than a block.
  if (tensor.bias_of != nullptr)
    request_.adapter->merge_bias(*tensor.bias_of, owned.rows.span<float>());
  if (tensor.has_delta) {
    owned.delta = Tensor(owned.rows.shape(), DType::kFloat32);
    merge(tensor, begin, end, owned.rows, owned.delta);
  }
  return owned;
}

void MergedTensors::for_each_rows(const MergedTensor& tensor, int64_t row_multiple,
                                  const std::function<void(const MergedRows&)>& visit) const {
  const int64_t length = std::max<int64_t>(1, tensor.row_length());
  const int64_t rows_of_block =
      round_up(std::max<int64_t>(1, kBlockElements / length), row_multiple);
  for (int64_t begin = 0; begin < tensor.num_rows(); begin += rows_of_block) {
    const int64_t end = std::min(tensor.num_rows(), begin + rows_of_block);
    const OwnedRows owned = read_rows(tensor, begin, end);
    visit({owned.rows, owned.delta});
  }
  request_.source.drop(tensor.source);
}

void MergedTensors::stream(const MergedTensor& tensor,
                           const std::function<void(std::span<const std::byte>)>& sink,
                           DeltaError& error) const {
  for_each_rows(tensor, 1, [&](const MergedRows& merged) {
    const Tensor rounded(merged.rows.shape(), request_.options.dtype);
    round_to(request_.options.dtype, merged.rows.span<const float>(), rounded, tensor.name);
    for (int64_t i = 0; i < merged.delta.numel() && !merged.delta.empty(); ++i)
      error.add(value_at(rounded, i), merged.rows.data<const float>()[i],
                merged.delta.data<const float>()[i]);
    sink(rounded.view().bytes());
  });
}

}  // namespace shardtune::exporting
