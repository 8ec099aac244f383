#include "export/low_bit.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/checked.h"
#include "core/log.h"
#include "export/memory_store.h"
#include "quant/double_quant.h"
#include "quant/nf4.h"

namespace shardtune::exporting {
namespace {

// quant_state is a JSON text of a length that must be known before the offset is: blanks fill it.
constexpr size_t kStateBytes = 384;

template <typename Values>
std::vector<std::byte> bytes_of(const Values& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> bytes_of(const TensorView& view) {
  const auto bytes = view.bytes();
  return {bytes.begin(), bytes.end()};
}

}  // namespace

LowBitLinears::LowBitLinears(const ExportRequest& request, const MergedTensors& merged)
    : request_(request), merged_(merged) {
  options_.method = request.options.low_bit;
  const Provenance& trained = request.provenance;
  if (trained.quantization.method == options_.method)
    options_ = trained.quantization;
  if (trained.merge_aware && trained.quantization.method != options_.method)
    throw ConfigError("--dtype: expected " + trained.quantization.method +
                      ", whose values the adapter was trained with (merge_aware), found " +
                      options_.method + ". Use --dtype " + trained.quantization.method +
                      ", or bfloat16 or float32 for the same values unpacked.");
  bool has_split_blocks = false;
  for (const MergedTensor& tensor : merged.tensors()) {
    has_split_blocks = has_split_blocks || (tensor.linear != nullptr && options_.method != "int8" &&
                                            tensor.row_length() % options_.block_size != 0);
  }
  if (has_split_blocks)
    log_warning("export: some rows are no whole blocks of " + std::to_string(options_.block_size) +
                " values; bitsandbytes 0.50.2 on a CPU decodes such weights with a wrong absmax.");
}

bool LowBitLinears::is_kept(const MergedTensor& tensor) const {
  return request_.provenance.quantization.method == options_.method && !tensor.has_delta &&
         request_.options.merge_base == MergeBase::kTrained && !tensor.linear->is_trained();
}

bool LowBitLinears::keeps_all() const {
  return std::ranges::all_of(merged_.tensors(), [&](const MergedTensor& tensor) {
    return tensor.linear == nullptr || is_kept(tensor);
  });
}

LowBitLinears::Part LowBitLinears::state_of(const MergedTensor& tensor, float nested_offset) const {
  io::Json state = io::Json::object();
  state.set("quant_type", options_.method);
  state.set("blocksize", options_.block_size);
  state.set("dtype", name_of(request_.options.dtype));
  io::Json shape = io::Json::array();
  for (const int64_t extent : tensor.shape)
    shape.push_back(extent);
  state.set("shape", std::move(shape));
  if (options_.double_quant) {
    state.set("nested_blocksize", quant::kNestedBlockSize);
    state.set("nested_dtype", "float32");
    state.set("nested_offset", nested_offset);
  }
  std::string text = state.dump();
  SHARDTUNE_ASSERT(text.size() <= kStateBytes);
  text.resize(kStateBytes, ' ');
  return {tensor.name + ".quant_state.bitsandbytes__" + options_.method,
          "U8",
          {static_cast<int64_t>(kStateBytes)},
          bytes_of(text)};
}

std::vector<LowBitLinears::Part> LowBitLinears::layout(const MergedTensor& tensor) const {
  const std::string& name = tensor.name;
  if (options_.method == "int8") {
    const std::string module = name.substr(0, name.rfind('.'));
    return {{name, "I8", tensor.shape, {}},
            {module + ".SCB", "F32", {tensor.num_rows()}, {}},
            {name + "_format", "U8", {}, {}}};
  }
  const int64_t blocks = ceil_div(tensor.numel(), options_.block_size);
  std::vector<Part> parts = {{name, "U8", {ceil_div(tensor.numel(), 2), 1}, {}},
                             {name + ".absmax", options_.double_quant ? "U8" : "F32", {blocks}, {}},
                             {name + ".quant_map", "F32", {16}, {}},
                             state_of(tensor, 0.0f)};
  if (options_.double_quant) {
    parts.push_back(
        {name + ".nested_absmax", "F32", {ceil_div(blocks, quant::kNestedBlockSize)}, {}});
    parts.push_back({name + ".nested_quant_map", "F32", {256}, {}});
  }
  return parts;
}

std::vector<LowBitLinears::Part> LowBitLinears::parts_of(const MergedTensor& tensor,
                                                         const quant::FrozenWeight& weight,
                                                         ParameterStore& store) const {
  std::vector<Part> parts = layout(tensor);
  const std::vector<ParameterId> ids = weight.components();
  parts[0].bytes = bytes_of(store.value(ids[0]));
  parts[1].bytes = bytes_of(store.value(ids[1]));
  if (options_.method == "int8") {
    parts[2].bytes = {std::byte{0}};
    return parts;
  }
  const auto& book = options_.method == "nf4" ? quant::nf4_codebook() : quant::fp4_codebook();
  parts[2].bytes = bytes_of(book.values);
  if (options_.double_quant) {
    parts[3] = state_of(tensor, *store.value(ids[3]).data<const float>());
    parts[4].bytes = bytes_of(store.value(ids[2]));
    parts[5].bytes = bytes_of(quant::dynamic_map(quant::DynamicMapKind::kSigned));
  }
  return parts;
}

std::vector<LowBitLinears::Part> LowBitLinears::encode(const MergedTensor& tensor,
                                                       DeltaError* error) const {
  if (is_kept(tensor)) {
    ParameterStore& store = request_.model.store();
    const UnitLease lease = store.acquire(tensor.linear->unit(), Pass::kForward);
    return parts_of(tensor, tensor.linear->weight(), store);
  }
  MemoryStore store;
  quant::FrozenWeightRequest request;
  request.store = &store;
  request.unit = store.add_unit("linear");
  request.name = tensor.name;
  request.out_features = tensor.num_rows();
  request.in_features = tensor.row_length();
  const auto weight = quant::make_frozen_weight(request, options_);
  weight->load([&](int64_t begin, int64_t end, float* out) {
    const Tensor rows = merged_.read_rows(tensor, begin, end).rows;
    std::ranges::copy(rows.span<const float>(), out);
  });
  if (error != nullptr && tensor.has_delta) {
    merged_.for_each_rows(tensor, 1, [&, row = int64_t{0}](const MergedRows& merged) mutable {
      const Tensor stored(merged.rows.shape(), DType::kFloat32);
      weight->dequantize_rows(row, row + merged.rows.dim(0), stored);
      row += merged.rows.dim(0);
      for (int64_t i = 0; i < merged.delta.numel(); ++i)
        error->add(stored.data<float>()[i], merged.rows.data<const float>()[i],
                   merged.delta.data<const float>()[i]);
    });
  }
  return parts_of(tensor, *weight, store);
}

io::Json LowBitLinears::config_json() const {
  const bool is_int8 = options_.method == "int8";
  io::Json config = io::Json::object();
  config.set("quant_method", "bitsandbytes");
  config.set("load_in_4bit", !is_int8);
  config.set("load_in_8bit", is_int8);
  config.set("_load_in_4bit", !is_int8);
  config.set("_load_in_8bit", is_int8);
  config.set("bnb_4bit_quant_type", is_int8 ? "fp4" : options_.method);
  config.set("bnb_4bit_use_double_quant", options_.double_quant);
  config.set("bnb_4bit_compute_dtype",
             is_int8 ? std::string("float32") : std::string(name_of(request_.options.dtype)));
  config.set("bnb_4bit_quant_storage", "uint8");
  config.set("llm_int8_threshold", 6.0);
  config.set("llm_int8_skip_modules", nullptr);
  config.set("llm_int8_enable_fp32_cpu_offload", false);
  config.set("llm_int8_has_fp16_weight", false);
  return config;
}

}  // namespace shardtune::exporting
