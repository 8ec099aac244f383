// Adapter methods: one file and one line each.
#include <algorithm>

#include "adapters/adapter.h"
#include "adapters/methods.h"

namespace shardtune::adapters {

std::vector<SavedTensor> Adapter::saved_tensors() const {
  std::vector<SavedTensor> saved;
  for (const AdapterTensor& tensor : tensors()) {
    SavedTensor& out =
        saved.emplace_back(SavedTensor{tensor.name, tensor.shape, {}, {}, tensor.prefix});
    if (tensor.constant != nullptr) {
      out.compose = [values = tensor.constant](const auto&, std::span<float> to) {
        std::ranges::copy(values->span<const float>(), to.begin());
      };
      continue;
    }
    out.sources = {tensor.id};
    out.compose = [](const auto& sources, std::span<float> to) {
      std::ranges::copy(sources[0], to.begin());
    };
  }
  return saved;
}

const Registry<AdapterMethod>& adapter_methods() {
  static const Registry<AdapterMethod> kMethods(
      "adapter.method", {{"lora", {&read_lora, "LORA", {{"r", "lora_rank"}}}},
                         {"ia3", {&read_ia3, "IA3", {}}},
                         {"vera", {&read_vera, "VERA", {}}},
                         {"loha", {&read_loha, "LOHA", {}}},
                         {"lokr", {&read_lokr, "LOKR", {}}},
                         {"oft", {&read_oft, "OFT", {}}},
                         {"boft", {&read_boft, "BOFT", {}}}});
  return kMethods;
}

std::unique_ptr<AdapterOptions> adapter_options_from_yaml(const io::YamlNode& section) {
  const std::string name = section.choice_or("method", "lora", adapter_methods().names());
  if (!adapter_methods().contains(name))
    return nullptr;
  const AdapterMethod& method = adapter_methods().at(name);
  auto options = method.read(*read_yaml_options(section, method.names));
  section.finish();
  return options;
}

std::unique_ptr<AdapterOptions> adapter_options_from_peft(const io::Json& config,
                                                          const std::string& name) {
  const std::string peft_type = io::JsonReader(config, name).string("peft_type");
  for (const std::string& method : adapter_methods().names()) {
    if (adapter_methods().at(method).peft_type == peft_type) {
      const auto reader = read_peft_options(config, name);
      auto options = adapter_methods().at(method).read(*reader);
      reader->finish();
      return options;
    }
  }
  throw UnsupportedError(name + ": peft_type '" + peft_type +
                         "' is not supported yet, see docs/status.md.");
}

}  // namespace shardtune::adapters
