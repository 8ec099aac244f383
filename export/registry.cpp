#include "export/exporter.h"

namespace shardtune::exporting {

const Registry<Exporter>& exporters() {
  static const Registry<Exporter> registry("--to", {{"hf", &export_hf}, {"peft", &export_peft}});
  return registry;
}

}  // namespace shardtune::exporting
