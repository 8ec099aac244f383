#include "adapters/lora_tables.h"

#include <algorithm>
#include <memory>

#include "adapters/adapter.h"
#include "adapters/linear_adapter.h"
#include "core/log.h"
#include "core/parallel_for.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

using autograd::GradSlot;
using autograd::Tape;
using autograd::Variable;
using kernels::Accumulate;
using kernels::Transpose;
using models::VocabularyTable;

namespace {

/// [n,r]: the columns `ids` of a [r,V].
Tensor columns_of(const TensorView& a, std::span<const int32_t> ids) {
  const int64_t rank = a.dim(0), width = a.dim(1);
  Tensor u(Shape{std::ssize(ids), rank}, DType::kFloat32);
  parallel_for(std::ssize(ids), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < rank; ++j)
        u.data<float>()[t * rank + j] =
            a.data<const float>()[j * width + ids[static_cast<size_t>(t)]];
    }
  });
  return u;
}

/// Adds du [n,r] to the columns; each thread has rows of A of its own.
void add_to_columns(const TensorView& du, std::span<const int32_t> ids, const GradSlot& slot) {
  const int64_t rank = slot.grad.dim(0), width = slot.grad.dim(1);
  parallel_for(rank, 1, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      float* const row = slot.grad.data<float>() + j * width;
      if (slot.accumulate == Accumulate::kNo)
        std::fill_n(row, width, 0.0f);
      for (size_t t = 0; t < ids.size(); ++t)
        row[ids[t]] += du.data<const float>()[static_cast<int64_t>(t) * rank + j];
    }
  });
}

}  // namespace

Variable update_embedding(Tape& tape, const Variable& x, std::span<const int32_t> ids,
                          const LoraTables& tables) {
  SHARDTUNE_ASSERT(x.dim(0) == std::ssize(ids) && x.dtype() == DType::kFloat32);
  const Variable a = tape.parameter(tables.embedding_A);
  const Variable b = tape.parameter(tables.embedding_B);
  const float scale = tables.embedding_scale;
  auto u = std::make_shared<Tensor>(columns_of(a.value(), ids));
  Tensor sum(x.shape(), DType::kFloat32);
  kernels::gemm_onto(x.value(), *u, b.value(), sum, scale);
  Variable output = tape.result(std::move(sum), {x, a, b});
  const auto kept = std::make_shared<const std::vector<int32_t>>(ids.begin(), ids.end());
  tape.record(output, [x = x.grad_ref(), a = a.grad_ref(), b, u, kept, scale](Tensor& dy) {
    const GradSlot db = b.grad_ref().slot();
    kernels::gemm_over_tokens(dy, *u, db.grad, db.accumulate, scale);
    Tensor du(u->shape(), DType::kFloat32);
    kernels::gemm(dy, b.value(), Transpose::kNo, du, Accumulate::kNo, scale);
    add_to_columns(du, *kept, a.slot());
    if (x.wanted())
      x.give(std::move(dy));
  });
  return output;
}

void merge_embedding_rows(const LoraTables& tables, const models::Model& model, int64_t begin,
                          int64_t end, const TensorView& rows) {
  const UnitLease lease = model.store().acquire(tables.front_unit, Pass::kForward);
  std::vector<int32_t> ids;
  for (int64_t id = begin; id < end; ++id)
    ids.push_back(static_cast<int32_t>(id));
  const Tensor u = columns_of(model.store().value(tables.embedding_A), ids);
  const TensorView b = model.store().value(tables.embedding_B);
  Tensor turned(Shape{b.dim(1), b.dim(0)}, DType::kFloat32);
  for (int64_t i = 0; i < b.dim(0); ++i) {
    for (int64_t j = 0; j < b.dim(1); ++j)
      turned.data<float>()[j * b.dim(0) + i] = b.data<const float>()[i * b.dim(1) + j];
  }
  add_product(u, turned, tables.embedding_scale, rows);
}

void merge_head_rows(const LoraTables& tables, const models::Model& model, int64_t begin,
                     int64_t end, const TensorView& rows) {
  const VocabularyTable& head = model.head();
  const UnitLease final_lease = model.store().acquire(model.final_unit(), Pass::kForward);
  for (int64_t c = 0; c < head.num_chunks(); ++c) {
    const int64_t first = head.chunk_begin(c);
    const int64_t from = std::max(begin, first);
    const int64_t to = std::min(end, first + head.chunk(c).out_features());
    if (from >= to)
      continue;
    const UnitLease lease = model.store().acquire(head.chunk(c).unit(), Pass::kForward);
    const TensorView b = model.store().value(tables.head_B[static_cast<size_t>(c)]);
    add_product(b.rows(from - first, to - first), model.store().value(tables.head_A),
                tables.head_scale, rows.rows(from - begin, to - begin));
  }
}

bool is_copy_of_table(const LoraTables& tables, const models::Model& model,
                      const io::TensorInfo& tensor, const io::TensorSource& file) {
  const VocabularyTable* table = nullptr;
  const auto is_base_of = [&](const std::string& path) {
    return !path.empty() && tensor.name == kModulePrefix + path + ".base_layer.weight";
  };
  if (is_base_of(tables.paths.embedding))
    table = model.tables().front();
  else if (is_base_of(tables.paths.head))
    table = &model.head();
  if (table == nullptr)
    return false;
  const std::vector<int64_t> shape = {table->vocab_size(), table->hidden_size()};
  if (tensor.shape != shape)
    throw DataError(file.describe(tensor) + ": expected [" + std::to_string(shape[0]) + ", " +
                    std::to_string(shape[1]) +
                    "] as in the model. The adapter was trained with another vocabulary.");
  constexpr int64_t kRows = 1024;
  bool is_equal = true;
  for (int64_t begin = 0; begin < shape[0]; begin += kRows) {
    const int64_t end = std::min(shape[0], begin + kRows);
    std::vector<float> theirs(static_cast<size_t>((end - begin) * shape[1]));
    file.read_float32(tensor, begin * shape[1], end * shape[1], theirs.data());
    const Tensor ours(Shape{end - begin, shape[1]}, DType::kFloat32);
    table->read_rows(begin, end, ours);
    for (size_t i = 0; i < theirs.size(); ++i) {
      const float rounded = model.compute_dtype() == DType::kBFloat16
                                ? static_cast<float>(BFloat16(theirs[i]))
                                : theirs[i];
      is_equal = is_equal && rounded == ours.data<float>()[i];
    }
  }
  if (!is_equal)
    log_warning(file.describe(tensor) +
                ": the adapter's copy of this table is not the model's own, which is used; PEFT "
                "would use the copy.");
  return true;
}

}  // namespace shardtune::adapters
