// --to hf: a merged model as transformers 5 loads it. Weights are streamed block by block into one
// file, or into numbered files with an index above max_shard_bytes; then the files around them;
// then everything is read back.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "core/log.h"
#include "export/exporter.h"
#include "export/low_bit.h"
#include "export/merged_tensors.h"
#include "export/model_files.h"
#include "export/verify.h"
#include "io/file.h"
#include "io/safetensors.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSpaceForOtherFiles = 64 << 20;  // tokenizer, configuration, headers

int64_t bytes_of(const MergedTensor& tensor, const ExportOptions& options) {
  if (tensor.linear == nullptr || options.low_bit.empty())
    return tensor.numel() * size_of(options.dtype);
  // With absmax and tables at most; what is written is counted by compare_tensors.
  return options.low_bit == "int8" ? tensor.numel() + tensor.num_rows() * 4 + 1
                                   : tensor.numel() / 2 + tensor.numel() / 8 + 4096;
}

/// Tensors in order of name, cut where the next one would make a file too long.
std::vector<std::vector<const MergedTensor*>> cut_files(const MergedTensors& merged,
                                                        const ExportOptions& options) {
  std::vector<const MergedTensor*> sorted;
  for (const MergedTensor& tensor : merged.tensors())
    sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const auto* a, const auto* b) { return a->name < b->name; });
  std::vector<std::vector<const MergedTensor*>> files(1);
  int64_t num_bytes = 0;
  for (const MergedTensor* tensor : sorted) {
    const int64_t size = bytes_of(*tensor, options);
    if (!files.back().empty() && num_bytes + size > options.max_shard_bytes) {
      files.emplace_back();
      num_bytes = 0;
    }
    files.back().push_back(tensor);
    num_bytes += size;
  }
  return files;
}

std::string file_name(size_t index, size_t count) {
  if (count == 1)
    return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

/// [rows, columns] of values of `size` bytes as [columns, rows]: what a Conv1D's file holds.
std::vector<std::byte> transposed(std::span<const std::byte> matrix, int64_t rows, int64_t columns,
                                  int64_t size) {
  std::vector<std::byte> result(matrix.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j)
      std::memcpy(result.data() + (j * rows + i) * size, matrix.data() + (i * columns + j) * size,
                  static_cast<size_t>(size));
  }
  return result;
}

class Writer {
 public:
  Writer(const ExportRequest& request, const MergedTensors& merged, const fs::path& folder)
      : config_(request.source.config()),
        options_(request.options),
        merged_(merged),
        folder_(folder) {
    if (!options_.low_bit.empty())
      low_bit_.emplace(request, merged);
  }

  void run() {
    const auto files = cut_files(merged_, options_);
    io::Json weight_map = io::Json::object();
    int64_t num_elements = 0;
    for (size_t i = 0; i < files.size(); ++i) {
      const std::string name = file_name(i, files.size());
      write_file(folder_ / name, files[i]);
      for (const MergedTensor* tensor : files[i]) {
        num_elements += tensor->numel();
        if (!is_low_bit(*tensor)) {
          weight_map.set(tensor->name, name);
          continue;
        }
        for (const LowBitLinears::Part& part : low_bit_->layout(*tensor))
          weight_map.set(part.name, name);
      }
    }
    if (files.size() == 1)
      return;
    io::Json metadata = io::Json::object();
    metadata.set("total_parameters", num_elements);
    metadata.set("total_size", num_bytes());
    io::Json index = io::Json::object();
    index.set("metadata", std::move(metadata));
    index.set("weight_map", std::move(weight_map));
    io::write_file_durably(folder_ / "model.safetensors.index.json", index.dump(2) + "\n");
  }

  const std::map<std::string, WrittenTensor>& written() const { return written_; }
  const DeltaError& delta_error() const { return delta_error_; }
  const LowBitLinears* low_bit() const { return low_bit_ ? &*low_bit_ : nullptr; }
  int64_t num_bytes() const {
    int64_t num_bytes = 0;
    for (const auto& [name, tensor] : written_)
      num_bytes += tensor.num_bytes;
    return num_bytes;
  }

 private:
  void write_file(const fs::path& path, const std::vector<const MergedTensor*>& tensors) {
    std::vector<io::TensorToWrite> list;
    for (const MergedTensor* tensor : tensors) {
      if (is_low_bit(*tensor)) {
        add_parts(*tensor, list);
        continue;
      }
      io::TensorToWrite out;
      out.name = tensor->name;
      out.dtype = options_.dtype == DType::kBFloat16 ? "BF16" : "F32";
      out.shape = tensor->shape;
      if (is_transposed(*tensor))
        std::swap(out.shape.at(0), out.shape.at(1));
      out.write = [this, tensor](const auto& sink) { write_tensor(*tensor, sink); };
      list.push_back(std::move(out));
    }
    io::write_safetensors(path, std::move(list));
  }

  bool is_low_bit(const MergedTensor& tensor) const { return low_bit_ && tensor.linear != nullptr; }

  /// Parts of one type stand side by side in a file, apart from the tensor's others: the weight is
  /// encoded again for each type.
  void add_parts(const MergedTensor& tensor, std::vector<io::TensorToWrite>& list) {
    const auto parts = low_bit_->layout(tensor);
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto write = [this, tensor = &tensor, i, name = parts[i].name](const auto& sink) {
        if (encoded_of_ != tensor) {
          const bool is_first = measured_.insert(tensor).second;
          encoded_ = low_bit_->encode(*tensor, is_first ? &delta_error_ : nullptr);
          encoded_of_ = tensor;
        }
        const std::vector<std::byte>& bytes = encoded_[i].bytes;
        written_[name] = {io::crc32c(bytes), std::ssize(bytes)};
        sink(bytes);
      };
      list.push_back({parts[i].name, parts[i].dtype, parts[i].shape, write});
    }
  }

  bool is_transposed(const MergedTensor& tensor) const {
    return models::is_conv1d(config_, tensor.name);
  }

  void write_tensor(const MergedTensor& tensor,
                    const std::function<void(std::span<const std::byte>)>& sink) {
    WrittenTensor& written = written_[tensor.name];
    const auto write = [&](std::span<const std::byte> bytes) {
      written.crc = io::crc32c(bytes, written.crc);
      written.num_bytes += static_cast<int64_t>(bytes.size());
      sink(bytes);
    };
    if (!is_transposed(tensor))
      return merged_.stream(tensor, write, delta_error_);
    std::vector<std::byte> whole;
    whole.reserve(static_cast<size_t>(bytes_of(tensor, options_)));
    merged_.stream(
        tensor,
        [&](std::span<const std::byte> bytes) {
          whole.insert(whole.end(), bytes.begin(), bytes.end());
        },
        delta_error_);
    write(transposed(whole, tensor.num_rows(), tensor.row_length(), size_of(options_.dtype)));
  }

  const models::ModelConfig& config_;
  const ExportOptions& options_;
  const MergedTensors& merged_;
  fs::path folder_;
  std::optional<LowBitLinears> low_bit_;
  const MergedTensor* encoded_of_ = nullptr;
  std::vector<LowBitLinears::Part> encoded_;
  std::set<const MergedTensor*> measured_;
  std::map<std::string, WrittenTensor> written_;
  DeltaError delta_error_;
};

/// Of a uniform error of at most half a step: 2^-9 for bf16; fp32 sums differ by a few 2^-24.
double rounding_of(const ExportOptions& options) {
  return std::ldexp(1.0, options.dtype == DType::kBFloat16 ? -9 : -18) / std::sqrt(3.0);
}

io::Json report_of(const ExportRequest& request, const MergedTensors& merged, const Writer& writer,
                   const LogitsDifference& logits) {
  int64_t num_merged = 0;
  for (const MergedTensor& tensor : merged.tensors())
    num_merged += tensor.has_delta ? 1 : 0;
  io::Json check = io::Json::object();
  check.set("tensors_compared", static_cast<int64_t>(writer.written().size()));
  check.set("logits_max_difference", logits.max_difference);
  check.set("logits_relative_rms", logits.relative_rms);
  check.set("logits_tolerance", logits.tolerance > 0.0 ? io::Json(logits.tolerance) : io::Json());
  const bool has_adapter = request.adapter != nullptr;
  const bool is_trained_base = request.options.merge_base == MergeBase::kTrained;
  io::Json report = io::Json::object();
  report.set("dtype", request.options.low_bit.empty() ? std::string(name_of(request.options.dtype))
                                                      : request.options.low_bit);
  if (writer.low_bit() != nullptr)
    report.set("codes_as_trained", writer.low_bit()->keeps_all());
  report.set("merge_base", is_trained_base ? "trained" : "original");
  report.set("tensors", static_cast<int64_t>(merged.tensors().size()));
  report.set("merged_tensors", num_merged);
  report.set("bytes", writer.num_bytes());
  report.set("delta_rounding_error",
             has_adapter ? io::Json(writer.delta_error().relative()) : io::Json());
  report.set("verified", std::move(check));
  return report;
}

}  // namespace

io::Json export_hf(const ExportRequest& request, const OutputFolder& output) {
  const fs::path& folder = output.partial();
  const MergedTensors merged(request);
  int64_t num_bytes = kSpaceForOtherFiles;
  for (const MergedTensor& tensor : merged.tensors())
    num_bytes += bytes_of(tensor, request.options);
  io::require_free_space(folder, num_bytes, "the merged model");
  Writer writer(request, merged, folder);
  write_model_files(request, folder,
                    writer.low_bit() == nullptr ? io::Json() : writer.low_bit()->config_json());
  writer.run();
  compare_tensors(*io::open_safetensors(folder), folder, writer.written());
  // Codes that were not trained with change the logits by what quantising takes: told, not judged.
  const bool is_judged = writer.low_bit() == nullptr || writer.low_bit()->keeps_all();
  const LogitsDifference logits =
      compare_logits(request, folder, is_judged ? rounding_of(request.options) : kNotJudged);
  io::Json report = report_of(request, merged, writer, logits);
  io::Json record = report;
  record.set("trained_on", to_json(request.provenance));
  io::write_file_durably(folder / kExportReportFile, record.dump(2) + "\n");
  return report;
}

}  // namespace shardtune::exporting
