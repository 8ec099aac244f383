// --to gguf: a merged model as llama.cpp loads it, one file. Matrices have the type asked for,
// vectors are F32; matrices whose rows are no whole blocks are F16, as llama.cpp's converter has
// it. --dtype keep: matrices stay in the blocks of the model's file (kept_blocks.h).
#include <algorithm>
#include <cmath>
#include <map>

#include "data/gguf_tokenizer.h"
#include "export/exporter.h"
#include "export/gguf_metadata.h"
#include "export/kept_blocks.h"
#include "export/merged_tensors.h"
#include "export/verify.h"
#include "io/file.h"
#include "io/gguf_encode.h"
#include "io/gguf_types.h"
#include "models/gguf_names.h"
#include "models/rope_scaling.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFileName = "model.gguf";
constexpr int64_t kSpaceForMetadata = 64 << 20;
constexpr int64_t kValuesAtOnce = 1 << 20;

bool keeps_blocks(const ExportOptions& options) { return options.gguf_type == "keep"; }

int64_t encoded_bytes(const io::GgufType& type, int64_t count) {
  return count / type.block_size * type.block_bytes;
}

class Writer {
 public:
  Writer(const ExportRequest& request, const MergedTensors& merged)
      : request_(request),
        config_(request.source.config()),
        merged_(merged),
        rope_divisors_(models::gguf_rope_divisors(config_)) {
    if (keeps_blocks(request.options))
      check_kept();
  }

  std::string type_of(const MergedTensor& tensor) const {
    const bool is_position =
        models::gguf_tensor_name(config_, tensor.name) == "position_embd.weight";
    if (tensor.shape.size() < 2 || is_position)  // as llama.cpp's converter has it
      return "F32";
    if (keeps_blocks(request_.options))
      return is_trained(tensor) ? "F16" : request_.source.stored_type(tensor.source);
    const io::GgufType* type = io::find_gguf_type(request_.options.gguf_type);
    return tensor.row_length() % type->block_size == 0 ? request_.options.gguf_type : "F16";
  }

  int64_t num_bytes() const {
    int64_t sum = 0;
    for (const MergedTensor& tensor : merged_.tensors())
      sum += encoded_bytes(*io::find_gguf_type(type_of(tensor)), tensor.numel());
    return sum;
  }

  void run(const fs::path& path) {
    std::vector<io::TensorToWrite> list;
    for (const MergedTensor& tensor : merged_.tensors()) {
      const std::string name = models::gguf_tensor_name(config_, tensor.name);
      if (name.empty())
        throw UnsupportedError("export --to gguf: " + tensor.name +
                               " has no name in GGUF. See docs/status.md; --to hf keeps it.");
      list.push_back({name, type_of(tensor), tensor.shape, [this, &tensor, name](const auto& sink) {
                        if (is_kept(tensor))
                          stream_kept(tensor, name, sink);
                        else
                          stream(tensor, name, sink);
                      }});
    }
    if (!rope_divisors_.empty())
      list.push_back(
          {"rope_freqs.weight", "F32", {std::ssize(rope_divisors_)}, [this](const auto& sink) {
             write_rope_divisors(sink);
           }});
    io::write_gguf(path, gguf_metadata(request_, request_.options.gguf_type), list);
  }

  const std::map<std::string, WrittenTensor>& written() const { return written_; }
  const DeltaError& delta_error() const { return delta_error_; }

 private:
  static bool is_trained(const MergedTensor& tensor) {
    return tensor.trained != kNoParameter ||
           (tensor.table != nullptr && tensor.table->is_trained()) ||
           (tensor.linear != nullptr && tensor.linear->is_trained());
  }
  /// Whether a tensor is written from the file's own blocks.
  bool is_kept(const MergedTensor& tensor) const {
    return keeps_blocks(request_.options) && tensor.shape.size() == 2 && !is_trained(tensor) &&
           type_of(tensor) == request_.source.stored_type(tensor.source);
  }

  void check_kept() const {
    if (!request_.source.folder().empty())
      throw ConfigError("export --dtype keep: expected a GGUF file as --model, found the folder " +
                        request_.source.path() + ". Use --dtype float16.");
    const std::string& method = request_.provenance.quantization.method;
    if (request_.options.merge_base == MergeBase::kTrained && method != "keep" && method != "none")
      throw ConfigError("export --dtype keep: the adapter was trained on the base in " + method +
                        ", the file's blocks are another base. Add --merge-base original.");
    for (const MergedTensor& tensor : merged_.tensors()) {
      if (!tensor.has_delta)
        continue;
      const std::string type = request_.source.stored_type(tensor.source);
      const int64_t columns = request_.adapter->columns_per_change(*tensor.linear);
      if (has_minima(type) && columns % io::find_gguf_type(type)->block_size == 0)
        continue;
      throw UnsupportedError(
          "export --dtype keep: " + tensor.name + " is " + type +
          ", and the adapter changes it by groups of " + std::to_string(columns) +
          " columns: blocks can take a change that is the same for all their columns, and those of "
          "Q4_1 and Q5_1 alone (LoRA with use_qalora and a qalora_group_size of whole blocks). Use "
          "--dtype float16.");
    }
  }

  /// The file's bytes, the adapter's change in the minima.
  void stream_kept(const MergedTensor& tensor, const std::string& name,
                   const std::function<void(std::span<const std::byte>)>& sink) {
    const std::string type = type_of(tensor);
    const io::GgufType& layout = *io::find_gguf_type(type);
    const bool is_interleaved = models::has_interleaved_rows(config_, tensor.name);
    const int64_t head_dim = config_.head_dim, length = tensor.row_length();
    const int64_t row_bytes = encoded_bytes(layout, length);
    const int64_t step =
        round_up(std::max<int64_t>(1, kValuesAtOnce / length), is_interleaved ? head_dim : 1);
    UnitLease lease;
    if (tensor.has_delta)
      lease = request_.model.store().acquire(tensor.linear->unit(), Pass::kForward);
    WrittenTensor& written = written_[name];
    for (int64_t begin = 0; begin < tensor.num_rows(); begin += step) {
      const int64_t end = std::min(tensor.num_rows(), begin + step);
      std::vector<std::byte> stored(static_cast<size_t>((end - begin) * row_bytes));
      request_.source.read_stored_rows(tensor.source, begin, end, stored.data());
      if (tensor.has_delta)
        shift(tensor, begin, end, layout, stored);
      std::vector<std::byte> bytes(stored.size());
      for (int64_t row = 0; row < end - begin; ++row) {
        const int64_t from = is_interleaved ? models::halves_row(row, head_dim) : row;
        std::copy_n(stored.data() + from * row_bytes, row_bytes, bytes.data() + row * row_bytes);
      }
      written.crc = io::crc32c(bytes, written.crc);
      written.num_bytes += std::ssize(bytes);
      sink(bytes);
    }
    request_.source.drop(tensor.source);
  }

  void shift(const MergedTensor& tensor, int64_t begin, int64_t end, const io::GgufType& layout,
             std::span<std::byte> stored) {
    const Shape shape{end - begin, tensor.row_length()};
    const Tensor delta = Tensor::zeros(shape, DType::kFloat32);
    request_.adapter->merge_rows(*tensor.linear, begin, end, delta);
    const Tensor merged(shape, DType::kFloat32);
    layout.decode(stored.data(), merged.span<float>());
    for (int64_t i = 0; i < shape.numel(); ++i)
      merged.data<float>()[i] += delta.data<float>()[i];
    add_to_minima(layout.name, delta.span<const float>(), stored);
    const auto row_bytes = static_cast<size_t>(std::ssize(stored) / (end - begin));
    for (int64_t row = 0; row < end - begin; ++row)
      check_row(tensor, {merged, delta}, row, layout,
                stored.subspan(static_cast<size_t>(row) * row_bytes, row_bytes));
  }

  void stream(const MergedTensor& tensor, const std::string& name,
              const std::function<void(std::span<const std::byte>)>& sink) {
    const std::string type = type_of(tensor);
    const io::GgufType& layout = *io::find_gguf_type(type);
    const bool is_interleaved = models::has_interleaved_rows(config_, tensor.name);
    const int64_t head_dim = config_.head_dim;
    WrittenTensor& written = written_[name];
    merged_.for_each_rows(tensor, is_interleaved ? head_dim : 1, [&](const MergedRows& merged) {
      const int64_t length = tensor.row_length();
      const auto row_bytes = static_cast<size_t>(encoded_bytes(layout, length));
      const int64_t num_rows = merged.rows.dim(0);
      std::vector<std::byte> bytes(static_cast<size_t>(num_rows) * row_bytes);
      for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t from = is_interleaved ? models::halves_row(row, head_dim) : row;
        const auto target =
            std::span(bytes).subspan(static_cast<size_t>(row) * row_bytes, row_bytes);
        io::encode_gguf(
            type, {merged.rows.data<const float>() + from * length, static_cast<size_t>(length)},
            target);
        check_row(tensor, merged, from, layout, target);
      }
      written.crc = io::crc32c(bytes, written.crc);
      written.num_bytes += static_cast<int64_t>(bytes.size());
      sink(bytes);
    });
  }

  void write_rope_divisors(const std::function<void(std::span<const std::byte>)>& sink) {
    const auto bytes = std::as_bytes(std::span(rope_divisors_));
    written_["rope_freqs.weight"] = {io::crc32c(bytes), static_cast<int64_t>(bytes.size())};
    sink(bytes);
  }

  // Decodes what was encoded: nothing that is not finite, and how much of the change is left.
  void check_row(const MergedTensor& tensor, const MergedRows& merged, int64_t row,
                 const io::GgufType& layout, std::span<const std::byte> encoded) {
    const int64_t length = tensor.row_length();
    decoded_.resize(static_cast<size_t>(length));
    layout.decode(encoded.data(), decoded_);
    for (int64_t i = 0; i < length; ++i) {
      const float stored = decoded_[static_cast<size_t>(i)];
      if (!std::isfinite(stored))
        throw NonFiniteError(tensor.name + ": element that is NaN or infinite as " +
                             std::string(layout.name) +
                             " in the merged weights; nothing was written. Check the base and the "
                             "adapter, or export with --dtype float32.");
      if (!merged.delta.empty())
        delta_error_.add(stored, merged.rows.data<const float>()[row * length + i],
                         merged.delta.data<const float>()[row * length + i]);
    }
  }

  const ExportRequest& request_;
  const models::ModelConfig& config_;
  const MergedTensors& merged_;
  const std::vector<float> rope_divisors_;  // a tensor of GGUF alone
  std::map<std::string, WrittenTensor> written_;
  std::vector<float> decoded_;
  DeltaError delta_error_;
};

/// As in hf.cpp; a code of Q8_0 is off by at most half of d = max |x| / 127, which is about 2.1
/// deviations of the 32 values of a block.
double rounding_of(const std::string& type) {
  if (type == "Q8_0")
    return 2.1 / 127.0 / std::sqrt(12.0);
  // Minima alone are rounded, to F16; they are about 2.5 deviations of the values of a block.
  if (type == "keep")
    return 2.5 * std::ldexp(1.0, -12) / std::sqrt(3.0);
  const int bits = type == "BF16" ? -9 : type == "F16" ? -12 : -18;
  return std::ldexp(1.0, bits) / std::sqrt(3.0);
}

io::Json report_of(const ExportRequest& request, const Writer& writer, int64_t num_bytes,
                   const LogitsDifference& logits) {
  io::Json check = io::Json::object();
  check.set("tensors_compared", static_cast<int64_t>(writer.written().size()));
  check.set("logits_max_difference", logits.max_difference);
  check.set("logits_relative_rms", logits.relative_rms);
  check.set("logits_tolerance", logits.tolerance > 0.0 ? io::Json(logits.tolerance) : io::Json());
  io::Json report = io::Json::object();
  report.set("dtype", request.options.gguf_type);
  report.set("merge_base",
             request.options.merge_base == MergeBase::kTrained ? "trained" : "original");
  report.set("tensors", static_cast<int64_t>(writer.written().size()));
  report.set("bytes", num_bytes);
  report.set("delta_rounding_error",
             request.adapter != nullptr ? io::Json(writer.delta_error().relative()) : io::Json());
  report.set("verified", std::move(check));
  return report;
}

}  // namespace

io::Json export_gguf(const ExportRequest& request, const OutputFolder& output) {
  const fs::path path = output.partial() / kFileName;
  const MergedTensors merged(request);
  Writer writer(request, merged);
  io::require_free_space(output.partial(), writer.num_bytes() + kSpaceForMetadata,
                         "the merged model");
  writer.run(path);
  const auto file = io::open_gguf(path);
  compare_tensors(*file, path, writer.written());
  if (request.tokenizer != nullptr)
    data::check_same_tokenizer(*request.tokenizer, *data::load_tokenizer_from_gguf(*file));
  const LogitsDifference logits =
      compare_logits(request, path, rounding_of(request.options.gguf_type));
  io::Json report = report_of(request, writer, writer.num_bytes(), logits);
  io::Json record = report;
  record.set("trained_on", to_json(request.provenance));
  io::write_file_durably(output.partial() / kExportReportFile, record.dump(2) + "\n");
  return report;
}

}  // namespace shardtune::exporting
