// The table of optimizers: one line each.
#include "core/registry.h"

#include "optim/adamw.h"
#include "optim/sgd.h"

namespace shardtune::optim {

namespace {
using OptimizerFactory = std::unique_ptr<Optimizer> (*)(const io::YamlNode& section);

const Registry<OptimizerFactory>& optimizers() {
  static const Registry<OptimizerFactory> table("optimizer.name",
                                                {{"adamw", &make_adamw}, {"sgd", &make_sgd}});
  return table;
}
}  // namespace

std::vector<std::string> optimizer_names() { return optimizers().names(); }

std::unique_ptr<Optimizer> make_optimizer(const io::YamlNode& section) {
  const std::string name = section.choice_or("name", "adamw", optimizer_names());
  // choice_or has told a bad name already; the run will not start.
  return optimizers().at(optimizers().contains(name) ? name : "adamw")(section);
}

}  // namespace shardtune::optim
