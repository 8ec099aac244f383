#include "export/combined_adapter.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "export/peft_adapter.h"

namespace shardtune::exporting {
namespace {

Provenance common_provenance(const std::vector<std::string>& folders, const std::string& model,
                             const std::string& model_sha256) {
  std::optional<Provenance> first;
  for (const std::string& folder : folders) {
    const auto found = read_provenance(folder);
    if (!found)
      continue;
    check_base(*found, folder, model, model_sha256);
    if (found->merge_aware)
      throw UnsupportedError(folder +
                             ": was trained merge-aware: its change counts together with the "
                             "quantiser, and is not combined with others. Leave it out.");
    if (!first)
      first = found;
  }
  Provenance provenance = first.value_or(Provenance{});
  provenance.base_model = model;
  provenance.base_sha256 = model_sha256;
  return provenance;
}

}  // namespace

io::Json export_combined(const std::vector<std::string>& folders,
                         const adapters::Combination& combination, const std::string& model,
                         const std::string& model_sha256, const OutputFolder& output) {
  const Provenance provenance = common_provenance(folders, model, model_sha256);
  const adapters::CombinedAdapter combined =
      adapters::combine_adapters(folders, combination, model);
  AdapterFiles files;
  files.config = combined.config;
  files.method = "lora";
  for (const adapters::CombinedTensor& tensor : combined.tensors) {
    adapters::SavedTensor& out = files.tensors.emplace_back();
    out.name = tensor.key;
    out.prefix.clear();
    out.shape = tensor.shape;
    out.compose = [&tensor](const auto&, std::span<float> to) {
      std::ranges::copy(tensor.values, to.begin());
    };
  }
  write_adapter_files(files, {}, provenance, output);
  io::Json report = io::Json::object();
  report.set("tensors", static_cast<int64_t>(files.tensors.size()));
  report.set("rank", combined.config.find("r")->as_integer());
  return report;
}

}  // namespace shardtune::exporting
