// A weight kept as the model file has it: rows of GGUF's blocks, or of another float type than the
// one computed in, decoded panel by panel. Nothing is rounded on the way into the store. A weight
// that the file holds in the compute dtype is the dense form.
#include <algorithm>
#include <array>

#include "core/parallel_for.h"
#include "io/gguf_types.h"
#include "quant/formats.h"
#include "quant/quantized_weight.h"
#include "quant/rounding.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {

/// One row of whole blocks.
struct StoredRow {
  const std::byte* bytes;
  const io::GgufType* type;

  const std::byte* block_of(int64_t value) const {
    return bytes + value / type->block_size * type->block_bytes;
  }
};

// Through a buffer of whole blocks: where values begin or end inside one, and for bf16.
void decode_through_buffer(const StoredRow& row, int64_t begin, int64_t end,
                           const TensorView& out) {
  std::array<float, 1024> buffer;  // a multiple of every block size
  const int64_t block_size = row.type->block_size;
  const int64_t last = round_up(end, block_size);
  for (int64_t at = begin / block_size * block_size; at < end;) {
    const int64_t count = std::min(std::ssize(buffer), last - at);
    row.type->decode(row.block_of(at), std::span(buffer).first(static_cast<size_t>(count)));
    const int64_t from = std::max(at, begin);
    const int64_t to = std::min(at + count, end);
    const float* const values = buffer.data() + (from - at);
    if (out.dtype() == DType::kFloat32) {
      std::copy_n(values, to - from, out.data<float>() + (from - begin));
    } else {
      BFloat16* const rounded = out.data<BFloat16>() + (from - begin);
      for (int64_t i = 0; i < to - from; ++i)
        rounded[i].bits = finite_to_bfloat16_bits(values[i]);
    }
    at += count;
  }
}

void decode_row(const StoredRow& row, int64_t begin, int64_t end, const TensorView& out) {
  const int64_t block_size = row.type->block_size;
  if (out.dtype() == DType::kFloat32 && begin % block_size == 0 && end % block_size == 0)
    row.type->decode(row.block_of(begin), {out.data<float>(), static_cast<size_t>(end - begin)});
  else
    decode_through_buffer(row, begin, end, out);
}

class StoredWeight final : public QuantizedWeight {
 public:
  StoredWeight(const FrozenWeightRequest& request, const io::GgufType& type)
      : QuantizedWeight({request.name, request.unit, request.out_features, request.in_features}),
        store_(request.store),
        type_(type),
        row_bytes_(request.in_features / type.block_size * type.block_bytes),
        stored_rows_(request.stored.rows),
        blocks_(store_->declare({request.name + ".blocks", request.unit, ParameterKind::kFrozen,
                                 DType::kUInt8, Shape{request.out_features, row_bytes_}})) {}

  std::string_view format() const override { return "keep"; }
  int64_t columns_per_minimum() const override {
    return type_.name == "Q4_1" || type_.name == "Q5_1" ? type_.block_size : 0;
  }
  std::vector<ParameterId> components() const override { return {blocks_}; }

  void load(const RowSource& rows, LoadBuffers& buffers) override;

 protected:
  kernels::BlockSource decoder(int64_t first_row) const override {
    const auto* const rows =
        static_cast<const std::byte*>(store_->value(blocks_).raw()) + first_row * row_bytes_;
    return [this, rows](const kernels::Block& block, const TensorView& out) {
      for (int64_t i = 0; i < block.num_rows; ++i)
        decode_row({rows + (block.first_row + i) * row_bytes_, &type_}, block.first_column,
                   block.first_column + block.num_columns, out.rows(i, i + 1));
    };
  }

 private:
  void check_finite(int64_t begin, int64_t end, const std::byte* blocks,
                    std::span<float> values) const;

  ParameterStore* store_;
  const io::GgufType& type_;
  int64_t row_bytes_;
  ByteSource stored_rows_;  // until load()
  ParameterId blocks_;
};

void StoredWeight::check_finite(int64_t begin, int64_t end, const std::byte* blocks,
                                std::span<float> values) const {
  const int64_t columns = in_features();
  parallel_for(end - begin, rows_per_task(columns), [&](int64_t first, int64_t last) {
    type_.decode(blocks + first * row_bytes_,
                 values.subspan(static_cast<size_t>(first * columns),
                                static_cast<size_t>((last - first) * columns)));
  });
  const auto decoded = values.first(static_cast<size_t>((end - begin) * columns));
  if (const auto bad = first_non_finite(decoded, 0))
    throw_non_finite(*this, begin * columns + *bad, decoded[static_cast<size_t>(*bad)]);
}

void StoredWeight::load(const RowSource&, LoadBuffers& buffers) {
  std::span<std::byte> blocks;
  if (store_->is_publisher(blocks_)) {
    const int64_t step = std::min(rows_per_slab(in_features()), out_features());
    const std::span<float> values = buffers.values(step * in_features());
    blocks = buffers.bytes(out_features() * row_bytes_);
    for (int64_t begin = 0; begin < out_features(); begin += step) {
      const int64_t end = std::min(begin + step, out_features());
      std::byte* const target = blocks.data() + begin * row_bytes_;
      stored_rows_(begin, end, target);
      check_finite(begin, end, target, values);
    }
  }
  stored_rows_ = nullptr;
  store_->publish(blocks_, blocks);
}

const io::GgufType& stored_type(const FrozenWeightRequest& request) {
  const io::GgufType* type = io::find_gguf_type(request.stored.type);
  if (type == nullptr || type->decode == nullptr || !request.stored.rows)
    throw UnsupportedError("weight " + request.name + ": quantization 'keep': expected one of " +
                           io::decodable_gguf_types() + "; found " +
                           (request.stored.type.empty() ? "no stored form" : request.stored.type) +
                           ". Use another quantization.method.");
  if (request.in_features % type->block_size != 0)
    throw ArgumentError("weight " + request.name + ": expected rows of whole " +
                        request.stored.type + " blocks of " + std::to_string(type->block_size) +
                        ", found rows of " + std::to_string(request.in_features));
  return *type;
}
}  // namespace

std::unique_ptr<FrozenWeight> make_stored_weight(const FrozenWeightRequest& request,
                                                 const QuantizationOptions& options) {
  check_request(request);
  const io::GgufType& type = stored_type(request);
  if (type.name == (request.compute == DType::kFloat32 ? "F32" : "BF16"))
    return make_dense_weight(request, options);
  return std::make_unique<StoredWeight>(request, type);
}

}  // namespace shardtune::quant
