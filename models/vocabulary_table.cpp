#include "models/vocabulary_table.h"

#include <algorithm>
#include <cstring>

#include "core/dry_run.h"
#include "core/parallel_for.h"

namespace shardtune::models {

VocabularyTable::VocabularyTable(ParameterStore& store, const std::string& name, int64_t vocab_size,
                                 int64_t hidden_size, DType compute)
    : store_(&store), vocab_size_(vocab_size), hidden_size_(hidden_size) {
  const int64_t num_chunks = ceil_div(vocab_size, kChunkRows);
  for (int64_t c = 0; c < num_chunks; ++c) {
    const std::string chunk_name = name + ".chunk" + std::to_string(c);
    quant::FrozenWeightRequest request;
    request.store = &store;
    request.unit = store.add_unit(chunk_name);
    request.name = chunk_name;
    request.out_features = std::min(kChunkRows, vocab_size - c * kChunkRows);
    request.in_features = hidden_size;
    request.compute = compute;
    chunks_.push_back(quant::make_frozen_weight(request, {}));
  }
}

void VocabularyTable::load(const quant::RowSource& rows) {
  for (int64_t c = 0; c < num_chunks(); ++c) {
    const int64_t first = chunk_begin(c);
    chunks_[c]->load(
        [&](int64_t begin, int64_t end, float* out) { rows(first + begin, first + end, out); });
  }
}

void VocabularyTable::lookup(std::span<const int32_t> ids, const TensorView& out) const {
  const int64_t row_bytes = hidden_size_ * size_of(out.dtype());
  for (int64_t c = 0; c < num_chunks(); ++c) {
    std::vector<int32_t> local;
    std::vector<int64_t> targets;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] / kChunkRows != c)
        continue;
      local.push_back(static_cast<int32_t>(ids[i] - chunk_begin(c)));
      targets.push_back(static_cast<int64_t>(i));
    }
    if (local.empty())
      continue;
    const UnitLease lease = store_->acquire(chunks_[c]->unit(), Pass::kForward);
    Tensor found(Shape{static_cast<int64_t>(local.size()), hidden_size_}, out.dtype());
    chunks_[c]->rows(local, found);
    if (DryRun::current() != nullptr)
      continue;
    const auto* source = static_cast<const std::byte*>(found.view().raw());
    auto* target = static_cast<std::byte*>(out.raw());
    for (size_t i = 0; i < targets.size(); ++i) {
      std::memcpy(target + targets[i] * row_bytes, source + static_cast<int64_t>(i) * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
  }
}

}  // namespace shardtune::models
