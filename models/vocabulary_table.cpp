#include "models/vocabulary_table.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

VocabularyTable::VocabularyTable(ParameterStore& store, const std::string& name,
                                 const TableShape& shape)
    : store_(&store), name_(name), shape_(shape) {
  const int64_t num_chunks = ceil_div(shape.vocab_size, kChunkRows);
  for (int64_t c = 0; c < num_chunks; ++c) {
    const std::string chunk_name = name + ".chunk" + std::to_string(c);
    quant::FrozenWeightRequest request;
    request.store = &store;
    request.unit = store.add_unit(chunk_name);
    request.name = chunk_name;
    request.out_features = std::min(kChunkRows, shape.vocab_size - c * kChunkRows);
    request.in_features = shape.hidden_size;
    request.compute = shape.compute;
    request.is_trained = shape.is_trained;
    chunks_.push_back(quant::make_frozen_weight(request, {}));
  }
}

int64_t VocabularyTable::num_bytes() const {
  const int64_t copy = shape_.compute == DType::kFloat32 ? 0 : size_of(shape_.compute);
  const int64_t trained = size_of(DType::kFloat32) + copy;
  return shape_.vocab_size *
         (shape_.hidden_size * (is_trained() ? trained : size_of(shape_.compute)) +
          num_columns() * trained);
}

std::vector<UnitId> VocabularyTable::lookup_units() const {
  if (!is_trained())
    return {kFetchRows};
  std::vector<UnitId> units;
  for (const auto& chunk : chunks_)
    units.push_back(chunk->unit());
  return units;
}

void VocabularyTable::load(const quant::RowSource& rows, quant::LoadBuffers& buffers) {
  for (int64_t c = 0; c < num_chunks(); ++c) {
    const int64_t first = chunk_begin(c);
    chunks_[c]->load(
        [&](int64_t begin, int64_t end, float* out) { rows(first + begin, first + end, out); },
        buffers);
  }
}

void VocabularyTable::read_rows(int64_t begin, int64_t end, const TensorView& out) const {
  for (int64_t c = begin / kChunkRows; c < num_chunks() && chunk_begin(c) < end; ++c) {
    const quant::FrozenWeight& weight = chunk(c);
    const int64_t first = std::max(begin, chunk_begin(c));
    const int64_t last = std::min(end, chunk_begin(c) + weight.out_features());
    const UnitLease lease = store_->acquire(weight.unit(), Pass::kForward);
    weight.dequantize_rows(first - chunk_begin(c), last - chunk_begin(c),
                           out.rows(first - begin, last - begin));
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
  const Tensor found(Shape{std::ssize(wanted), shape_.hidden_size}, shape_.compute);
  const auto row_bytes = static_cast<size_t>(shape_.hidden_size * size_of(shape_.compute));
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

namespace {

// Where the ids of a lookup fall into one chunk.
struct ChunkIds {
  int64_t begin = 0;  // first row of the chunk
  int64_t end = 0;
  std::shared_ptr<const std::vector<int32_t>> ids;

  template <typename Visit>  // (token, row of the chunk)
  void for_each(const Visit& visit) const {
    for (size_t t = 0; t < ids->size(); ++t) {
      if ((*ids)[t] >= begin && (*ids)[t] < end)
        visit(static_cast<int64_t>(t), (*ids)[t] - begin);
    }
  }
};

// Rows of the gradient are summed in order of tokens: each thread has columns of its own.
void add_to_rows(const TensorView& dx, const ChunkIds& chunk, const autograd::GradSlot& slot) {
  const int64_t width = dx.dim(1);
  constexpr int64_t kColumns = 64;
  parallel_for(width, kColumns, [&](int64_t begin, int64_t end) {
    float* const rows = slot.grad.data<float>();
    for (int64_t row = 0; row < slot.grad.dim(0) && slot.accumulate == kernels::Accumulate::kNo;
         ++row)
      std::fill(rows + row * width + begin, rows + row * width + end, 0.0f);
    chunk.for_each([&](int64_t t, int64_t row) {
      for (int64_t i = begin; i < end; ++i)
        rows[row * width + i] += dx.data<float>()[t * width + i];
    });
  });
}

// x with the rows that come from one chunk.
autograd::Variable place_chunk(autograd::Tape& tape, const autograd::Variable& x,
                               const autograd::Variable& table, const ChunkIds& chunk) {
  parallel_for(1, 1, [&](int64_t, int64_t) {
    chunk.for_each([&](int64_t t, int64_t row) {
      kernels::cast(table.value().rows(row, row + 1), x.value().rows(t, t + 1));
    });
  });
  autograd::Variable output = tape.result_in_place(x, {x, table});
  tape.record(output, [x = x.grad_ref(), table = table.grad_ref(), chunk](Tensor& dx) {
    add_to_rows(dx, chunk, table.slot());
    if (x.wanted())
      x.give(std::move(dx));
  });
  return output;
}

}  // namespace

autograd::Variable VocabularyTable::embed(autograd::Tape& tape,
                                          std::span<const int32_t> ids) const {
  Tensor rows(Shape{std::ssize(ids), shape_.hidden_size}, DType::kFloat32);
  if (!is_trained()) {
    lookup(ids, rows);
    return autograd::Variable::constant(std::move(rows));
  }
  const auto all = std::make_shared<const std::vector<int32_t>>(ids.begin(), ids.end());
  auto x = autograd::Variable::constant(std::move(rows));
  for (int64_t c = 0; c < num_chunks(); ++c) {
    const quant::FrozenWeight& weight = chunk(c);
    tape.in_unit(weight.unit(), [&] {
      x = place_chunk(tape, x, tape.parameter(weight.components().front()),
                      {chunk_begin(c), chunk_begin(c) + weight.out_features(), all});
    });
  }
  return x;
}

}  // namespace shardtune::models
