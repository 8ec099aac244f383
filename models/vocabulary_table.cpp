#include "models/vocabulary_table.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

VocabularyTable::VocabularyTable(ParameterStore& store, const std::string& name, int64_t vocab_size,
                                 int64_t hidden_size, DType compute)
    : store_(&store),
      name_(name),
      vocab_size_(vocab_size),
      hidden_size_(hidden_size),
      compute_(compute) {
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

namespace {
// Where one chunk's rows of a lookup come from and go to.
struct ChunkLookup {
  std::vector<int32_t> rows;  // each once, ascending
  int64_t first = 0;          // place of the first among all rows fetched
};
}  // namespace

void VocabularyTable::lookup(std::span<const int32_t> ids, const TensorView& out) const {
  std::vector<ChunkLookup> lookups(chunks_.size());
  std::vector<int32_t> wanted(ids.begin(), ids.end());
  std::ranges::sort(wanted);
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const int64_t c = wanted[i] / kChunkRows;
    ChunkLookup& of_chunk = lookups[static_cast<size_t>(c)];
    if (of_chunk.rows.empty())
      of_chunk.first = static_cast<int64_t>(i);
    of_chunk.rows.push_back(static_cast<int32_t>(wanted[i] - chunk_begin(c)));
  }
  const Tensor found(Shape{std::ssize(wanted), hidden_size_}, compute_);
  const auto row_bytes = static_cast<size_t>(hidden_size_ * size_of(compute_));
  auto* const target = static_cast<std::byte*>(found.view().raw());
  std::vector<RowFetch> fetches;
  for (size_t c = 0; c < lookups.size(); ++c) {
    const ChunkLookup& of_chunk = lookups[c];
    if (!of_chunk.rows.empty())
      fetches.push_back({chunks_[c]->components().front(),
                         of_chunk.rows,
                         {target + static_cast<size_t>(of_chunk.first) * row_bytes,
                          of_chunk.rows.size() * row_bytes}});
  }
  store_->fetch_rows(fetches);
  constexpr int64_t kGrain = 16;
  parallel_for(std::ssize(ids), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto place = std::ranges::lower_bound(wanted, ids[static_cast<size_t>(i)]);
      const int64_t row = place - wanted.begin();
      kernels::cast(found.view().rows(row, row + 1), out.rows(i, i + 1));
    }
  });
}

}  // namespace shardtune::models
