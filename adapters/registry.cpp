// Adapter methods: one file and one line each.
#include "adapters/adapter.h"
#include "adapters/lora.h"

namespace shardtune::adapters {

const Registry<AdapterMethod>& adapter_methods() {
  static const Registry<AdapterMethod> kMethods(
      "adapter.method", {{"lora", AdapterMethod{&lora_from_yaml, &lora_from_peft, "LORA"}}});
  return kMethods;
}

std::unique_ptr<AdapterOptions> adapter_options_from_yaml(const io::YamlNode& section) {
  const std::string method = section.choice_or("method", "lora", adapter_methods().names());
  if (!adapter_methods().contains(method))
    return nullptr;
  auto options = adapter_methods().at(method).from_yaml(section);
  section.finish();
  return options;
}

}  // namespace shardtune::adapters
