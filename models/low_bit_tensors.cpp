#include "models/low_bit_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "io/json.h"
#include "quant/double_quant.h"
#include "quant/int8.h"

namespace shardtune::models {

namespace {

constexpr std::string_view kState = ".quant_state.bitsandbytes__";
constexpr std::string_view kScb = ".SCB";
constexpr int64_t kMaxStateBytes = 1 << 16;
constexpr int64_t kMaxExtent = int64_t{1} << 31;

int64_t numel_of(const io::TensorInfo& tensor) {
  int64_t numel = 1;
  for (const int64_t extent : tensor.shape)
    numel = checked_mul(numel, extent);
  return numel;
}

/// Parts need not be aligned in the file.
template <typename T>
std::vector<T> values_of(std::span<const std::byte> bytes, int64_t begin, int64_t end) {
  std::vector<T> values(static_cast<size_t>(end - begin));
  std::memcpy(values.data(), bytes.data() + begin * static_cast<int64_t>(sizeof(T)),
              values.size() * sizeof(T));
  return values;
}

std::vector<int64_t> shape_of(const io::JsonReader& state) {
  const io::Json* shape = state.object().find("shape");
  std::vector<int64_t> result;
  if (shape != nullptr && shape->is_array()) {
    for (const io::Json& extent : shape->as_array())
      result.push_back(extent.is_integer() ? extent.as_integer() : 0);
  }
  if (result.size() != 2 || result[0] < 1 || result[1] < 1 || result[0] > kMaxExtent ||
      result[1] > kMaxExtent)
    throw DataError(state.name() + ": shape: expected [out, in], found " +
                    (shape == nullptr ? "nothing" : shape->dump()) + ". Copy the model again.");
  return result;
}

}  // namespace

LowBitTensors::LowBitTensors(const io::TensorSource& tensors) : tensors_(tensors) {
  for (const io::TensorInfo& tensor : tensors.tensors()) {
    const std::string_view name = tensor.name;
    if (const size_t at = name.find(kState); at != std::string_view::npos)
      add_four_bit(tensor, name.substr(0, at));
    else if (name.ends_with(kScb))
      add_int8(tensor, name.substr(0, name.size() - kScb.size()));
  }
}

const io::TensorInfo& LowBitTensors::part(const std::string& name, std::string_view dtype,
                                          int64_t numel) const {
  const io::TensorInfo* found = tensors_.find(name);
  if (found == nullptr)
    throw DataError(name +
                    ": is missing beside the other parts of a weight that bitsandbytes "
                    "quantised. Copy the model again.");
  if (found->dtype != dtype || numel_of(*found) != numel)
    throw DataError(tensors_.describe(*found) + ": expected " + std::to_string(numel) +
                    " elements of " + std::string(dtype) + ", found " +
                    std::to_string(numel_of(*found)) + " of " + found->dtype +
                    ". The parts of the quantised weight do not fit; copy the model again.");
  return *found;
}

void LowBitTensors::add_four_bit(const io::TensorInfo& state, std::string_view weight) {
  const std::string where = tensors_.describe(state);
  if (state.dtype != "U8" || state.num_bytes > kMaxStateBytes)
    throw DataError(where + ": expected a short text in U8, found " +
                    std::to_string(state.num_bytes) + " bytes of " + state.dtype + ".");
  const auto bytes = tensors_.bytes(state);
  const io::Json json =
      io::parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where);
  const io::JsonReader reader(json, where);
  Weight found;
  found.format = reader.string("quant_type");
  found.shape = shape_of(reader);
  found.block_size = reader.integer("blocksize");
  if ((found.format != "nf4" && found.format != "fp4") || !quant::is_block_size(found.block_size))
    throw UnsupportedError(where + ": expected nf4 or fp4 in blocks of " +
                           quant::block_sizes_text() + ", found " + found.format +
                           " in blocks of " + std::to_string(found.block_size) + ".");
  const std::string name(weight);
  const int64_t numel = checked_mul(found.shape[0], found.shape[1]);
  const int64_t blocks = ceil_div(numel, found.block_size);
  found.codes = &part(name, "U8", ceil_div(numel, 2));
  const bool is_nested = reader.has("nested_blocksize");
  found.absmax = &part(name + ".absmax", is_nested ? "U8" : "F32", blocks);
  const io::TensorInfo& map = part(name + ".quant_map", "F32", 16);
  const auto& book = found.format == "nf4" ? quant::nf4_codebook() : quant::fp4_codebook();
  bool is_known = std::ranges::equal(values_of<float>(tensors_.bytes(map), 0, 16), book.values);
  if (is_nested) {
    if (reader.integer("nested_blocksize") != quant::kNestedBlockSize)
      throw UnsupportedError(where + ": nested_blocksize: expected 256.");
    found.nested = &part(name + ".nested_absmax", "F32", ceil_div(blocks, quant::kNestedBlockSize));
    const auto nested_map =
        values_of<float>(tensors_.bytes(part(name + ".nested_quant_map", "F32", 256)), 0, 256);
    is_known = is_known &&
               std::ranges::equal(nested_map, quant::dynamic_map(quant::DynamicMapKind::kSigned));
    found.nested_offset = static_cast<float>(reader.number("nested_offset"));
  }
  if (!is_known || !std::isfinite(found.nested_offset))
    throw UnsupportedError(where +
                           ": the weight was quantised with another table than "
                           "bitsandbytes has for " +
                           found.format + ".");
  weights_.emplace(name, std::move(found));
}

void LowBitTensors::add_int8(const io::TensorInfo& absmax, std::string_view module) {
  const std::string name = std::string(module) + ".weight";
  const io::TensorInfo* codes = tensors_.find(name);
  if (codes == nullptr || codes->dtype != "I8" || codes->shape.size() != 2 || codes->shape[0] < 1 ||
      codes->shape[1] < 1)
    throw DataError(tensors_.describe(absmax) + ": expected a matrix in I8 as " + name +
                    ". Copy the model again.");
  Weight found{.format = "int8", .shape = codes->shape, .codes = codes};
  found.absmax = &part(absmax.name, "F32", codes->shape[0]);
  const io::TensorInfo* layout = tensors_.find(name + "_format");
  const bool is_row_major =
      layout == nullptr || (layout->num_bytes == 1 && tensors_.bytes(*layout)[0] == std::byte{0});
  if (!is_row_major)
    throw UnsupportedError(tensors_.describe(*layout) + ": expected rows in order (0).");
  weights_.emplace(name, std::move(found));
}

const LowBitTensors::Weight* LowBitTensors::find(std::string_view name) const {
  const auto found = weights_.find(name);
  return found == weights_.end() ? nullptr : &found->second;
}

void LowBitTensors::read_rows(const Weight& weight, int64_t begin, int64_t end, float* out) const {
  const int64_t columns = weight.shape[1];
  SHARDTUNE_ASSERT(begin >= 0 && begin <= end && end <= weight.shape[0]);
  parallel_for(
      end - begin, std::max<int64_t>(1, (1 << 14) / columns), [&](int64_t first, int64_t last) {
        float* const to = out + first * columns;
        if (weight.format != "int8")
          return read_four_bit(weight, begin + first, begin + last, to);
        const auto codes = values_of<int8_t>(tensors_.bytes(*weight.codes),
                                             (begin + first) * columns, (begin + last) * columns);
        const auto absmax =
            values_of<float>(tensors_.bytes(*weight.absmax), begin + first, begin + last);
        for (int64_t row = 0; row < last - first; ++row)
          quant::int8_dequantize_row(
              std::span(codes).subspan(row * columns, columns), absmax[row],
              TensorView(to + row * columns, DType::kFloat32, Shape{columns}));
      });
}

void LowBitTensors::read_four_bit(const Weight& weight, int64_t begin, int64_t end,
                                  float* out) const {
  const int64_t columns = weight.shape[1], size = weight.block_size;
  const int64_t first = begin * columns, last = end * columns;
  if (first == last)
    return;
  const int64_t first_block = first / size, last_block = ceil_div(last, size);
  std::vector<float> absmax;
  const auto stored = tensors_.bytes(*weight.absmax);
  if (weight.nested == nullptr) {
    absmax = values_of<float>(stored, first_block, last_block);
  } else {
    const auto& map = quant::dynamic_map(quant::DynamicMapKind::kSigned);
    const int64_t first_nested = first_block / quant::kNestedBlockSize;
    const auto nested = values_of<float>(tensors_.bytes(*weight.nested), first_nested,
                                         ceil_div(last_block, quant::kNestedBlockSize));
    for (int64_t block = first_block; block < last_block; ++block)
      absmax.push_back(quant::dequantize_absmax(
          static_cast<uint8_t>(stored[static_cast<size_t>(block)]),
          nested[block / quant::kNestedBlockSize - first_nested], weight.nested_offset, map));
  }
  quant::Nf4View view;
  view.codes = reinterpret_cast<const uint8_t*>(tensors_.bytes(*weight.codes).data()) +
               first_block * size / 2;
  view.absmax.absmax = absmax.data();
  view.block_size = size;
  view.codebook = weight.format == "nf4" ? &quant::nf4_codebook() : &quant::fp4_codebook();
  quant::nf4_dequantize(view, first - first_block * size,
                        TensorView(out, DType::kFloat32, Shape{last - first}));
}

}  // namespace shardtune::models
