// Families by model_type: one file and one line each.
#include "models/family.h"

namespace shardtune::models {

const Registry<Family>& families() {
  static const Registry<Family> kFamilies("model_type", {{"llama", llama_family()},
                                                         {"mistral", mistral_family()},
                                                         {"qwen2", qwen2_family()},
                                                         {"gpt2", gpt2_family()}});
  return kFamilies;
}

std::unique_ptr<Model> load_model(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options) {
  return families().at(source.config().model_type).make(source, store, options);
}

}  // namespace shardtune::models
