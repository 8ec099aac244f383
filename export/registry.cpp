#include "export/exporter.h"

namespace shardtune::exporting {

const Registry<Exporter>& exporters() {
  static const Registry<Exporter> registry("--to", {{"hf", &export_hf},
                                                    {"peft", &export_peft},
                                                    {"gguf", &export_gguf},
                                                    {"gguf-lora", &export_gguf_lora}});
  return registry;
}

}  // namespace shardtune::exporting
