// The weight as it is, kept in the compute dtype; a trained one in fp32, with the bf16 copy of the
// store for products in bf16.
#include <algorithm>
#include <cstring>
#include <optional>

#include "core/parallel_for.h"
#include "quant/formats.h"
#include "quant/rounding.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {

template <typename From, typename To>
void convert(const From* from, int64_t count, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(From));
  } else {
    for (int64_t i = 0; i < count; ++i)
      to[i] = To(static_cast<float>(from[i]));
  }
}

template <typename From>
void convert_row(const From* from, int64_t count, const TensorView& out, int64_t row) {
  if (out.dtype() == DType::kFloat32)
    convert(from, count, out.data<float>() + row * count);
  else
    convert(from, count, out.data<BFloat16>() + row * count);
}

class DenseWeight final : public FrozenWeight {
 public:
  explicit DenseWeight(const FrozenWeightRequest& request)
      : FrozenWeight({request.name, request.unit, request.out_features, request.in_features}),
        store_(request.store),
        multiplies_copy_(request.is_trained && request.compute == DType::kBFloat16),
        id_(request.store->declare(
            {request.name, request.unit,
             request.is_trained ? ParameterKind::kTrainable : ParameterKind::kFrozen,
             request.is_trained ? DType::kFloat32 : request.compute,
             Shape{request.out_features, request.in_features}})) {}

  std::string_view format() const override { return "none"; }
  std::vector<ParameterId> components() const override { return {id_}; }

  void load(const RowSource& rows, LoadBuffers& buffers) override;
  void matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                   Accumulate accumulate) const override;
  void matmul_with_low_rank(const TensorView& x, const kernels::LowRankTerm& term,
                            const TensorView& y) const override;
  void matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                              const TensorView& dx, Accumulate accumulate) const override;
  void rows(std::span<const int32_t> ids, const TensorView& out) const override;
  void dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const override;
  kernels::BlockSource blocks() const override;

 private:
  DType stored_dtype() const { return store_->spec(id_).dtype; }
  TensorView factor() const {
    return multiplies_copy_ ? store_->value_bf16(id_) : store_->value(id_);
  }
  void read_row(int64_t row, const TensorView& value, const TensorView& out, int64_t out_row) const;

  ParameterStore* store_;
  bool multiplies_copy_;
  ParameterId id_;
};

void DenseWeight::load(const RowSource& rows, LoadBuffers& buffers) {
  std::span<std::byte> bytes;
  if (store_->is_publisher(id_)) {
    const DType dtype = stored_dtype();
    const int64_t columns = in_features();
    const int64_t step = std::min(rows_per_slab(columns), out_features());
    const std::span<float> slab = buffers.values(step * columns);
    bytes = buffers.bytes(out_features() * columns * size_of(dtype));
    const TensorView target(bytes.data(), dtype, {out_features(), columns});
    for (int64_t begin = 0; begin < out_features(); begin += step) {
      const int64_t end = std::min(begin + step, out_features());
      const std::span<const float> values(slab.data(),
                                          static_cast<size_t>((end - begin) * columns));
      rows(begin, end, slab.data());
      if (const auto bad = first_non_finite(values, begin * columns))
        throw_non_finite(*this, *bad, slab[static_cast<size_t>(*bad - begin * columns)]);
      parallel_for(end - begin, rows_per_task(columns), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r)
          convert_row(slab.data() + r * columns, columns, target, begin + r);
      });
    }
  }
  store_->publish(id_, bytes);
}

void DenseWeight::matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                              Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), end - begin);
  if (x.dim(0) == 0)
    return;
  kernels::gemm(x, factor().rows(begin, end), kernels::Transpose::kYes, y, accumulate);
}

void DenseWeight::matmul_with_low_rank(const TensorView& x, const kernels::LowRankTerm& term,
                                       const TensorView& y) const {
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), out_features());
  if (x.dim(0) > 0)
    kernels::gemm_with_low_rank(x, factor(), term, y);
}

void DenseWeight::matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                                         const TensorView& dx, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "dy", dy, -1, end - begin);
  check_matrix(*this, "dx", dx, dy.dim(0), in_features());
  if (dy.dim(0) == 0)
    return;
  kernels::gemm(dy, factor().rows(begin, end), kernels::Transpose::kNo, dx, accumulate);
}

void DenseWeight::read_row(int64_t row, const TensorView& value, const TensorView& out,
                           int64_t out_row) const {
  const int64_t columns = in_features();
  if (value.dtype() == DType::kFloat32)
    convert_row(value.data<float>() + row * columns, columns, out, out_row);
  else
    convert_row(value.data<BFloat16>() + row * columns, columns, out, out_row);
}

void DenseWeight::rows(std::span<const int32_t> ids, const TensorView& out) const {
  check_matrix(*this, "out", out, std::ssize(ids), in_features());
  check_row_ids(*this, ids);
  const TensorView value = store_->value(id_);
  parallel_for(std::ssize(ids), rows_per_task(in_features()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      read_row(ids[static_cast<size_t>(i)], value, out, i);
  });
}

void DenseWeight::dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "out", out, end - begin, in_features());
  const TensorView value = store_->value(id_);
  parallel_for(end - begin, rows_per_task(in_features()), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      read_row(begin + r, value, out, r);
  });
}

kernels::BlockSource DenseWeight::blocks() const {
  return [this](const kernels::Block& block, const TensorView& out) {
    const TensorView value = store_->value(id_);
    for (int64_t r = 0; r < block.num_rows; ++r) {
      const int64_t from = (block.first_row + r) * in_features() + block.first_column;
      if (value.dtype() == DType::kFloat32)
        convert_row(value.data<float>() + from, block.num_columns, out, r);
      else
        convert_row(value.data<BFloat16>() + from, block.num_columns, out, r);
    }
  };
}
}  // namespace

std::unique_ptr<FrozenWeight> make_dense_weight(const FrozenWeightRequest& request,
                                                const QuantizationOptions&) {
  check_request(request);
  return std::make_unique<DenseWeight>(request);
}

}  // namespace shardtune::quant
