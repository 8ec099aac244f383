#include "export/peft_adapter.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/registry.h"
#include "export/exporter.h"
#include "io/file.h"
#include "io/safetensors.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

std::string peft_key(const adapters::SavedTensor& tensor) { return tensor.prefix + tensor.name; }

void write_weights(const std::vector<adapters::SavedTensor>& saved, const AdapterValues& values,
                   const fs::path& path) {
  std::vector<io::TensorToWrite> tensors;
  for (const adapters::SavedTensor& tensor : saved) {
    const auto extents = tensor.shape.extents();
    io::TensorToWrite out{peft_key(tensor), "F32", {extents.begin(), extents.end()}, {}};
    out.write = [&values, &tensor](const auto& sink) {
      const std::vector<float> composed = values_of_saved(tensor, values);
      sink(std::as_bytes(std::span<const float>(composed)));
    };
    tensors.push_back(std::move(out));
  }
  io::write_safetensors(path, std::move(tensors));
}

void compare_weights(const std::vector<adapters::SavedTensor>& saved, const AdapterValues& values,
                     const fs::path& path) {
  const auto source = io::open_safetensors(path);
  for (const adapters::SavedTensor& tensor : saved) {
    const io::TensorInfo* info = source->find(peft_key(tensor));
    bool is_equal = info != nullptr && info->num_bytes == tensor.shape.numel() * 4;
    if (is_equal) {
      const std::vector<float> composed = values_of_saved(tensor, values);
      const auto read = source->bytes(*info);
      is_equal = std::memcmp(read.data(), composed.data(), read.size()) == 0;
      source->drop(*info);
    }
    if (!is_equal)
      throw CorruptBlockError(path.string() + ": " + peft_key(tensor) +
                              ": read back other bytes than were written. Check the disk.");
  }
}

std::string model_card(const AdapterFiles& files, const Provenance& provenance) {
  const std::string& method = files.method;
  // JSON strings are YAML strings too.
  const auto quoted = [](const std::string& text) { return io::Json(text).dump(); };
  return "---\nbase_model: " + quoted(provenance.base_model) +
         "\nlibrary_name: " + files.folder.library + "\npipeline_tag: text-generation\ntags:\n- " +
         quoted("base_model:adapter:" + provenance.base_model) + "\n- " + method +
         "\n---\n\nAn adapter (" + method + ") trained by shardtune for " +
         std::to_string(provenance.trained_steps) +
         " steps.\n`shardtune.json` says on which base, by hash, and in which quantization.\n";
}

AdapterFiles files_of(const adapters::Adapter& adapter, const Provenance& provenance) {
  return {adapter.saved_tensors(), adapter.peft_config(provenance.base_model),
          std::string(adapter.method()), adapter.folder()};
}

}  // namespace

void write_adapter_files(const AdapterFiles& files, const AdapterValues& values,
                         const Provenance& provenance, const OutputFolder& output) {
  const std::vector<adapters::SavedTensor>& saved = files.tensors;
  check_values(saved, values);
  int64_t num_bytes = 1 << 20;
  for (const adapters::SavedTensor& tensor : saved)
    num_bytes += tensor.shape.numel() * 4 + 256;
  const fs::path& folder = output.partial();
  io::require_free_space(folder, num_bytes, "the adapter");
  write_weights(saved, values, folder / files.folder.weights_file);
  compare_weights(saved, values, folder / files.folder.weights_file);
  io::write_file_durably(folder / "adapter_config.json", files.config.dump(2) + "\n");
  io::write_file_durably(folder / "README.md", model_card(files, provenance));
  io::write_file_durably(folder / kProvenanceFile, to_json(provenance).dump(2) + "\n");
}

std::vector<float> values_of_saved(const adapters::SavedTensor& tensor,
                                   const AdapterValues& values) {
  std::vector<std::vector<float>> sources;
  for (const ParameterId id : tensor.sources)
    sources.push_back(values(id));
  std::vector<float> out(static_cast<size_t>(tensor.shape.numel()));
  tensor.compose(sources, out);
  return out;
}

void check_values(const std::vector<adapters::SavedTensor>& saved, const AdapterValues& values) {
  double square_sum = 0.0;
  for (const adapters::SavedTensor& tensor : saved) {
    double sum = 0.0;
    for (const float x : values_of_saved(tensor, values))
      sum += static_cast<double>(x) * x;
    if (!std::isfinite(sum))
      throw NonFiniteError(tensor.name +
                           ": NaN or infinity in the adapter; nothing was written. "
                           "Go back to an earlier checkpoint.");
    square_sum += sum;
  }
  if (saved.empty() || square_sum == 0.0)
    throw ArgumentError("adapter: all tensors are zero; nothing was written");
}

AdapterValues values_of(ParameterStore& store) {
  return [&store](ParameterId id) {
    const UnitLease lease = store.acquire(store.spec(id).unit, Pass::kForward);
    const auto values = store.value(id).span<const float>();
    return std::vector<float>(values.begin(), values.end());
  };
}

void write_peft_adapter(const adapters::Adapter& adapter, const AdapterValues& values,
                        const fs::path& folder, const Provenance& provenance, Existing existing) {
  OutputFolder output(folder, existing);
  write_adapter_files(files_of(adapter, provenance), values, provenance, output);
  output.commit();
}

io::Json export_peft(const ExportRequest& request, const OutputFolder& output) {
  if (request.adapter == nullptr)
    throw ConfigError("export --to peft: expected an adapter, found none. Add --adapter FOLDER.");
  write_adapter_files(files_of(*request.adapter, request.provenance),
                      values_of(request.model.store()), request.provenance, output);
  io::Json report = io::Json::object();
  report.set("tensors", static_cast<int64_t>(request.adapter->saved_tensors().size()));
  return report;
}

}  // namespace shardtune::exporting
