// --to gguf-lora: a LoRA adapter as llama.cpp loads it beside a GGUF base (--lora FILE), one file.
// Where one would guess wrong: the scale is alpha / rank with the rank of each pair and one alpha
// for all, so rsLoRA is written as alpha * sqrt(rank) and what alpha_pattern and rank_pattern
// change beyond that is multiplied into B; rows of B follow the base's rows of q and k, A stays.
// Source  ggml-org/llama.cpp convert_lora_to_gguf.py, src/llama-adapter.cpp
#include <algorithm>
#include <cmath>

#include "adapters/lora_options.h"
#include "export/exporter.h"
#include "export/peft_adapter.h"
#include "io/file.h"
#include "io/gguf_write.h"
#include "models/gguf_names.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFileName = "adapter.gguf";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";
constexpr int64_t kRowsCompared = 256;  // of each linear

/// One of a pair as GGUF has it.
struct Factor {
  adapters::SavedTensor tensor;
  std::string name;
  bool is_interleaved = false;  // rows of B
  float multiplier = 1.0f;      // of B: what alpha / rank does not say
};

[[noreturn]] void refuse(const std::string& what) {
  throw UnsupportedError("export --to gguf-lora: " + what +
                         " has no form in llama.cpp's adapter files. Use --to gguf for merged "
                         "weights, or --to peft.");
}

adapters::LoraOptions options_of(const ExportRequest& request) {
  if (request.adapter->method() != "lora")
    refuse("an adapter of method '" + std::string(request.adapter->method()) + "'");
  const io::Json config = request.adapter->peft_config(request.provenance.base_model);
  const std::string name = "adapter_config.json";
  adapters::LoraOptions options = adapters::parse_lora(*adapters::read_peft_options(config, name));
  if (request.adapter->changes(adapters::Adapter::Table::kEmbedding) ||
      request.adapter->changes(adapters::Adapter::Table::kHead))
    refuse("a change of the embedding or the head");
  if (options.use_dora)
    refuse("DoRA (use_dora)");
  if (options.qalora_group_size > 0)
    refuse("QA-LoRA (use_qalora), whose A sees groups of inputs,");
  return options;
}

/// The file's alpha, of which each pair takes alpha / rank.
float alpha_of(const adapters::LoraOptions& options) {
  const auto rank = static_cast<double>(options.lora_rank);
  return static_cast<float>(options.use_rslora ? options.lora_alpha * std::sqrt(rank)
                                               : options.lora_alpha);
}

class LoraFile {
 public:
  explicit LoraFile(const ExportRequest& request)
      : request_(request),
        config_(request.source.config()),
        options_(options_of(request)),
        alpha_(alpha_of(options_)),
        values_(values_of(request.model.store())) {
    for (adapters::SavedTensor& tensor : request.adapter->saved_tensors())
      add(std::move(tensor));
  }

  const std::vector<Factor>& factors() const { return factors_; }
  float alpha() const { return alpha_; }

  void write(const fs::path& path) const {
    std::vector<adapters::SavedTensor> saved;
    std::vector<io::TensorToWrite> list;
    int64_t num_bytes = 1 << 20;
    for (const Factor& factor : factors_) {
      saved.push_back(factor.tensor);
      num_bytes += factor.tensor.shape.numel() * 4 + 256;
      const auto extents = factor.tensor.shape.extents();
      list.push_back({factor.name, "F32", {extents.begin(), extents.end()}, [&](const auto& sink) {
                        const std::vector<float> written = file_values(factor);
                        sink(std::as_bytes(std::span(written)));
                      }});
    }
    check_values(saved, values_);
    io::require_free_space(path.parent_path(), num_bytes, "the adapter");
    const std::vector<io::GgufPair> metadata = {
        io::gguf_string("general.type", "adapter"),
        io::gguf_string("general.architecture", models::gguf_architecture(config_)),
        io::gguf_string("adapter.type", "lora"), io::gguf_float32("adapter.lora.alpha", alpha_),
        io::gguf_uint32("general.file_type", 0)};
    io::write_gguf(path, metadata, list);
  }

  /// Every factor byte by byte; then alpha / rank * B A of the file against the adapter's change.
  void verify(const fs::path& path) const {
    const auto file = io::open_gguf(path);
    for (const Factor& factor : factors_) {
      const io::TensorInfo* info = file->find(factor.name);
      const std::vector<float> expected = file_values(factor);
      if (info == nullptr ||
          !std::ranges::equal(file->bytes(*info), std::as_bytes(std::span(expected))))
        throw CorruptBlockError(path.string() + ": " + factor.name +
                                ": read back other bytes than were written. Check the disk.");
    }
    for (models::BaseLinear* linear : request_.model.linears()) {
      if (request_.adapter->wraps(*linear))
        compare_change(*file, *linear);
    }
  }

 private:
  void add(adapters::SavedTensor tensor) {
    const bool is_A = tensor.name.ends_with(kA);
    if (!is_A && !tensor.name.ends_with(kB))
      refuse(tensor.name);
    const std::string path = tensor.name.substr(0, tensor.name.size() - kA.size());
    const std::string base = models::gguf_tensor_name(config_, path + ".weight");
    if (base.empty())
      refuse(tensor.name);
    Factor factor{std::move(tensor), base + (is_A ? ".lora_a" : ".lora_b")};
    if (!is_A) {
      factor.is_interleaved = models::has_interleaved_rows(config_, path + ".weight");
      const auto rank = static_cast<double>(factor.tensor.shape[1]);
      const double multiplier = options_.scale_of(path) * rank / alpha_;
      // alpha is stored in fp32.
      factor.multiplier =
          std::abs(multiplier - 1.0) < 0x1p-22 ? 1.0f : static_cast<float>(multiplier);
    }
    factors_.push_back(std::move(factor));
  }

  /// The factor's values in the file's order.
  std::vector<float> file_values(const Factor& factor) const {
    const std::vector<float> saved = values_of_saved(factor.tensor, values_);
    const int64_t num_rows = factor.tensor.shape[0], length = factor.tensor.shape[1];
    std::vector<float> result(saved.size());
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t from = factor.is_interleaved ? models::halves_row(row, config_.head_dim) : row;
      std::transform(saved.data() + from * length, saved.data() + (from + 1) * length,
                     result.data() + row * length,
                     [&](float value) { return value * factor.multiplier; });
    }
    return result;
  }

  /// The first rows of a linear's change. Both sides round each of 2 rank + 4 operations by 2^-24.
  void compare_change(const io::GgufFile& file, const models::BaseLinear& linear) const {
    const std::string weight = linear.path() + ".weight";
    const std::string base = models::gguf_tensor_name(config_, weight);
    const io::TensorInfo& info_a = *file.find(base + ".lora_a");
    const io::TensorInfo& info_b = *file.find(base + ".lora_b");
    const int64_t rank = info_a.shape[0], in = info_a.shape[1];
    const int64_t num_rows = std::min(info_b.shape[0], kRowsCompared);
    std::vector<float> a(static_cast<size_t>(rank * in));
    std::vector<float> b(static_cast<size_t>(info_b.shape[0] * rank));
    file.read_float32(info_a, 0, std::ssize(a), a.data());
    file.read_float32(info_b, 0, std::ssize(b), b.data());
    const UnitLease lease = request_.model.store().acquire(linear.unit(), Pass::kForward);
    const Tensor change = Tensor::zeros({num_rows, in}, DType::kFloat32);
    request_.adapter->merge_rows(linear, 0, num_rows, change);
    const double scale = file.number("adapter.lora.alpha") / static_cast<double>(rank);
    const double unit = static_cast<double>(2 * rank + 4) * 0x1p-23 * std::abs(scale);
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t at = models::has_interleaved_rows(config_, weight)
                             ? models::interleaved_row(row, config_.head_dim)
                             : row;
      for (int64_t column = 0; column < in; ++column) {
        double sum = 0.0, magnitude = 0.0;
        for (int64_t r = 0; r < rank; ++r) {
          const double term = static_cast<double>(b[static_cast<size_t>(at * rank + r)]) *
                              a[static_cast<size_t>(r * in + column)];
          sum += term;
          magnitude += std::abs(term);
        }
        const double expected = change.data<const float>()[row * in + column];
        if (!(std::abs(scale * sum - expected) <= unit * magnitude))
          throw CorruptBlockError(
              file.path() + ": " + base + ": the change in row " + std::to_string(row) +
              " is not the adapter's: expected " + std::to_string(expected) + ", read back " +
              std::to_string(scale * sum) + ". Use --to peft, and report this.");
      }
    }
  }

  const ExportRequest& request_;
  const models::ModelConfig& config_;
  const adapters::LoraOptions options_;
  const float alpha_;
  const AdapterValues values_;
  std::vector<Factor> factors_;
};

}  // namespace

io::Json export_gguf_lora(const ExportRequest& request, const OutputFolder& output) {
  if (request.adapter == nullptr)
    throw ConfigError(
        "export --to gguf-lora: expected an adapter, found none. Add --adapter FOLDER.");
  if (request.provenance.merge_aware)
    throw UnsupportedError(
        "export --to gguf-lora: the adapter was trained merge-aware: its weights are those of base "
        "and change quantised together, which no adapter beside a base gives. Use --to gguf or "
        "--to hf --dtype " +
        request.provenance.quantization.method + ".");
  const LoraFile lora(request);
  const fs::path path = output.partial() / kFileName;
  lora.write(path);
  lora.verify(path);
  io::Json report = io::Json::object();
  report.set("tensors", static_cast<int64_t>(lora.factors().size()));
  report.set("alpha", static_cast<double>(lora.alpha()));
  io::Json record = report;
  record.set("trained_on", to_json(request.provenance));
  io::write_file_durably(output.partial() / kExportReportFile, record.dump(2) + "\n");
  return report;
}

}  // namespace shardtune::exporting
