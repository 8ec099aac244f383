// Families by model_type: one file and one line each.
#include "core/registry.h"

#include "models/llama.h"
#include "models/model.h"

namespace shardtune::models {

namespace {

using Factory = std::unique_ptr<Model> (*)(const ModelSource&, ParameterStore&, const LoadOptions&);

const Registry<Factory>& families() {
  static const Registry<Factory> kFamilies("model_type", {{"llama", &make_llama}});
  return kFamilies;
}

}  // namespace

std::unique_ptr<Model> load_model(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options) {
  return families().at(source.config().model_type)(source, store, options);
}

}  // namespace shardtune::models
