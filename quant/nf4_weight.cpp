// The NF4 and FP4 weight: codes of the flattened [out, in] and the absmax of each block, in fp32
// or, with double_quant, in 8 bits. Blocks run across rows when block_size does not divide
// in_features.
#include <algorithm>
#include <functional>
#include <numeric>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "quant/double_quant.h"
#include "quant/formats.h"
#include "quant/nf4.h"
#include "quant/quantized_weight.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {

struct Nf4Sizes {
  int64_t codes_bytes;
  int64_t num_blocks;
  int64_t num_nested_blocks;
};

Nf4Sizes nf4_sizes(const QuantizationOptions& options, int64_t num_values) {
  const int64_t num_blocks = ceil_div(num_values, options.block_size);
  return {ceil_div(num_values, 2), num_blocks, ceil_div(num_blocks, kNestedBlockSize)};
}

void check_block_size(const QuantizationOptions& options) {
  if (!is_block_size(options.block_size))
    throw ConfigError("quantization.block_size: expected one of " + block_sizes_text() +
                      ", found " + std::to_string(options.block_size) +
                      ". Write for example 'block_size: 64'.");
}

class Nf4Weight final : public QuantizedWeight {
 public:
  Nf4Weight(const FrozenWeightRequest& request, const QuantizationOptions& options);

  std::string_view format() const override { return options_.method; }
  std::vector<ParameterId> components() const override {
    if (options_.double_quant)
      return {codes_, absmax_codes_, nested_absmax_, nested_offset_};
    return {codes_, absmax_};
  }

  void load(const RowSource& rows, LoadBuffers& buffers) override;
  bool can_requantize() const override { return true; }
  void requantize(const RowSource& rows) override;

 protected:
  kernels::BlockSource decoder(int64_t first_row) const override {
    return [view = resolve(), columns = in_features(), first_row](const kernels::Block& block,
                                                                  const TensorView& out) {
      for (int64_t i = 0; i < block.num_rows; ++i)
        nf4_dequantize(view, (first_row + block.first_row + i) * columns + block.first_column,
                       out.rows(i, i + 1));
    };
  }

 private:
  ParameterId declare(const char* component, DType dtype, int64_t count) {
    return store_->declare(
        {name() + "." + component, unit(), ParameterKind::kFrozen, dtype, Shape{count}, codes_});
  }
  int64_t num_values() const { return out_features() * in_features(); }
  const FourBitCodebook& codebook() const {
    return options_.method == "fp4" ? fp4_codebook() : nf4_codebook();
  }
  Nf4View resolve() const;
  void quantize(const RowSource& rows, LoadBuffers& buffers, std::span<uint8_t> codes,
                std::span<float> absmax) const;
  /// Fills in codes and absmax, on the publisher alone.
  using Quantiser = std::function<void(std::span<uint8_t> codes, std::span<float> absmax)>;
  void publish_quantised(const Quantiser& quantiser, LoadBuffers& buffers);
  void publish_absmax(const std::vector<float>& absmax);

  ParameterStore* store_;
  QuantizationOptions options_;
  ParameterId codes_ = kNoParameter;
  ParameterId absmax_ = kNoParameter;
  ParameterId absmax_codes_ = kNoParameter;
  ParameterId nested_absmax_ = kNoParameter;
  ParameterId nested_offset_ = kNoParameter;
};

Nf4Weight::Nf4Weight(const FrozenWeightRequest& request, const QuantizationOptions& options)
    : QuantizedWeight({request.name, request.unit, request.out_features, request.in_features}),
      store_(request.store),
      options_(options) {
  const Nf4Sizes sizes = nf4_sizes(options, num_values());
  codes_ = declare("codes", DType::kUInt8, sizes.codes_bytes);
  if (options.double_quant) {
    absmax_codes_ = declare("absmax_codes", DType::kUInt8, sizes.num_blocks);
    nested_absmax_ = declare("nested_absmax", DType::kFloat32, sizes.num_nested_blocks);
    nested_offset_ = declare("nested_offset", DType::kFloat32, 1);
  } else {
    absmax_ = declare("absmax", DType::kFloat32, sizes.num_blocks);
  }
}

// Slabs of whole rows end inside a block, so the values of an unfinished block wait in front of the
// next slab.
void Nf4Weight::quantize(const RowSource& rows, LoadBuffers& buffers, std::span<uint8_t> codes,
                         std::span<float> absmax) const {
  const int64_t columns = in_features();
  const int64_t block_size = options_.block_size;
  const int64_t step = std::min(rows_per_slab(columns), out_features());
  const std::span<float> buffer = buffers.values(block_size + step * columns);
  int64_t num_waiting = 0;
  int64_t done = 0;
  for (int64_t begin = 0; begin < out_features(); begin += step) {
    const int64_t end = std::min(begin + step, out_features());
    rows(begin, end, buffer.data() + num_waiting);
    const int64_t available = num_waiting + (end - begin) * columns;
    const bool last = end == out_features();
    const int64_t count = last ? available : available / block_size * block_size;
    const auto bad =
        nf4_quantize(buffer.first(count), block_size, codes.subspan(done / 2, ceil_div(count, 2)),
                     absmax.subspan(done / block_size, ceil_div(count, block_size)), codebook());
    if (bad)
      throw_non_finite(*this, done + *bad, buffer[*bad]);
    std::copy(buffer.begin() + count, buffer.begin() + available, buffer.begin());
    num_waiting = available - count;
    done += count;
  }
}

void Nf4Weight::publish_quantised(const Quantiser& quantiser, LoadBuffers& buffers) {
  std::span<uint8_t> codes;
  std::vector<float> absmax;
  if (store_->is_publisher(codes_)) {
    const Nf4Sizes sizes = nf4_sizes(options_, num_values());
    const std::span<std::byte> bytes = buffers.bytes(sizes.codes_bytes);
    codes = {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()};
    absmax.resize(sizes.num_blocks);
    quantiser(codes, absmax);
  }
  store_->publish(codes_, std::as_bytes(codes));
  publish_absmax(absmax);
}

void Nf4Weight::load(const RowSource& rows, LoadBuffers& buffers) {
  const auto quantiser = [&](auto codes, auto absmax) { quantize(rows, buffers, codes, absmax); };
  publish_quantised(quantiser, buffers);
}

// A group is whole blocks, so it is quantised as it would be within the whole; the last one ends
// with the tensor.
void Nf4Weight::requantize(const RowSource& rows) {
  const int64_t columns = in_features(), size = options_.block_size;
  const int64_t group = rows_per_group(columns, size / std::gcd(size, columns));
  const auto quantiser = [&](std::span<uint8_t> codes, std::span<float> absmax) {
    parallel_tasks(ceil_div(out_features(), group), [&](int64_t task) {
      const int64_t begin = task * group, end = std::min(begin + group, out_features());
      std::vector<float> values((end - begin) * columns);
      rows(begin, end, values.data());
      const int64_t first = begin * columns, count = std::ssize(values);
      const auto bad =
          nf4_quantize(values, size, codes.subspan(first / 2, ceil_div(count, 2)),
                       absmax.subspan(first / size, ceil_div(count, size)), codebook());
      if (bad)
        throw_non_finite(*this, first + *bad, values[*bad]);
    });
  };
  LoadBuffers buffers;
  publish_quantised(quantiser, buffers);
}

void Nf4Weight::publish_absmax(const std::vector<float>& absmax) {
  if (!options_.double_quant) {
    publish_values(*store_, absmax_, absmax);
    return;
  }
  const float offset = absmax_offset(absmax);
  std::vector<uint8_t> absmax_codes(absmax.size());
  std::vector<float> nested_absmax(ceil_div(std::ssize(absmax), kNestedBlockSize));
  quantize_absmax(absmax, offset, absmax_codes, nested_absmax);
  publish_values(*store_, absmax_codes_, absmax_codes);
  publish_values(*store_, nested_absmax_, nested_absmax);
  publish_values(*store_, nested_offset_, std::vector<float>{offset});
}

Nf4View Nf4Weight::resolve() const {
  Nf4View view;
  view.codes = store_->value(codes_).data<const uint8_t>();
  view.block_size = options_.block_size;
  view.codebook = &codebook();
  if (options_.double_quant) {
    view.absmax.codes = store_->value(absmax_codes_).data<const uint8_t>();
    view.absmax.nested_absmax = store_->value(nested_absmax_).data<const float>();
    view.absmax.offset = *store_->value(nested_offset_).data<const float>();
  } else {
    view.absmax.absmax = store_->value(absmax_).data<const float>();
  }
  return view;
}
}  // namespace

std::unique_ptr<FrozenWeight> make_nf4_weight(const FrozenWeightRequest& request,
                                              const QuantizationOptions& options) {
  check_request(request);
  check_block_size(options);
  return std::make_unique<Nf4Weight>(request, options);
}

}  // namespace shardtune::quant
