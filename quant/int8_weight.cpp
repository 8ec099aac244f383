// The int8 weight: codes [out, in] and the absmax of each row.
#include <algorithm>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "quant/formats.h"
#include "quant/int8.h"
#include "quant/quantized_weight.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {

class Int8Weight final : public QuantizedWeight {
 public:
  explicit Int8Weight(const FrozenWeightRequest& request)
      : QuantizedWeight({request.name, request.unit, request.out_features, request.in_features}),
        store_(request.store) {
    codes_ = store_->declare({request.name + ".codes", request.unit, ParameterKind::kFrozen,
                              DType::kInt8, Shape{request.out_features, request.in_features}});
    absmax_ = store_->declare({request.name + ".absmax", request.unit, ParameterKind::kFrozen,
                               DType::kFloat32, Shape{request.out_features}, codes_});
  }

  std::string_view format() const override { return "int8"; }
  std::vector<ParameterId> components() const override { return {codes_, absmax_}; }

  void load(const RowSource& rows, LoadBuffers& buffers) override;
  bool can_requantize() const override { return true; }
  void requantize(const RowSource& rows) override;

 protected:
  kernels::BlockSource decoder(int64_t first_row) const override {
    return [codes = store_->value(codes_).span<const int8_t>(),
            absmax = store_->value(absmax_).span<const float>(), columns = in_features(),
            first_row](const kernels::Block& block, const TensorView& out) {
      for (int64_t i = 0; i < block.num_rows; ++i) {
        const int64_t row = first_row + block.first_row + i;
        int8_dequantize_row(codes.subspan(row * columns + block.first_column, block.num_columns),
                            absmax[row], out.rows(i, i + 1));
      }
    };
  }

 private:
  ParameterStore* store_;
  ParameterId codes_{};
  ParameterId absmax_{};
};

void Int8Weight::load(const RowSource& rows, LoadBuffers& buffers) {
  std::span<int8_t> codes;
  std::vector<float> absmax;
  if (store_->is_publisher(codes_)) {
    const int64_t columns = in_features();
    const int64_t step = std::min(rows_per_slab(columns), out_features());
    const std::span<float> slab = buffers.values(step * columns);
    const std::span<std::byte> bytes = buffers.bytes(out_features() * columns);
    codes = {reinterpret_cast<int8_t*>(bytes.data()), bytes.size()};
    absmax.resize(out_features());
    for (int64_t begin = 0; begin < out_features(); begin += step) {
      const int64_t count = std::min(step, out_features() - begin);
      rows(begin, begin + count, slab.data());
      const auto bad = int8_quantize_rows(slab.first(count * columns), columns,
                                          codes.subspan(begin * columns, count * columns),
                                          std::span(absmax).subspan(begin, count));
      if (bad)
        throw_non_finite(*this, begin * columns + *bad, slab[*bad]);
    }
  }
  store_->publish(codes_, std::as_bytes(codes));
  publish_values(*store_, absmax_, absmax);
}

void Int8Weight::requantize(const RowSource& rows) {
  std::vector<int8_t> codes;
  std::vector<float> absmax;
  if (store_->is_publisher(codes_)) {
    const int64_t columns = in_features();
    codes.resize(out_features() * columns);
    absmax.resize(out_features());
    const int64_t group = rows_per_group(columns, 1);
    parallel_tasks(ceil_div(out_features(), group), [&](int64_t task) {
      const int64_t begin = task * group, count = std::min(group, out_features() - begin);
      std::vector<float> values(count * columns);
      rows(begin, begin + count, values.data());
      const auto bad = int8_quantize_rows(
          values, columns, std::span(codes).subspan(begin * columns, count * columns),
          std::span(absmax).subspan(begin, count));
      if (bad)
        throw_non_finite(*this, begin * columns + *bad, values[*bad]);
    });
  }
  publish_values(*store_, codes_, codes);
  publish_values(*store_, absmax_, absmax);
}
}  // namespace

std::unique_ptr<FrozenWeight> make_int8_weight(const FrozenWeightRequest& request,
                                               const QuantizationOptions&) {
  check_request(request);
  return std::make_unique<Int8Weight>(request);
}

}  // namespace shardtune::quant
