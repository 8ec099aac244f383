// How the embeddings of virtual tokens start, under PEFT's keys prompt_tuning_init and
// prompt_tuning_init_text.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter.h"

namespace shardtune::adapters {

struct PromptStart {
  std::string init = "RANDOM";  // RANDOM, TEXT, SAMPLE_VOCAB
  std::string text;             // of TEXT

  /// Keys of the run's section with their values as YAML.
  std::vector<std::pair<std::string, std::string>> keys() const;
  void add_peft_keys(const std::string& base_model,
                     std::vector<std::pair<std::string, io::Json>>& own) const;
  /// The base's embeddings [n, H] of the tokens that the start asks for; empty where it is random.
  /// Collective.
  Tensor embeddings(const models::Model& model, const InitContext& context,
                    const AdapterTensor& prompt) const;
};

PromptStart read_prompt_start(const OptionReader& reader, const std::vector<std::string>& choices);

}  // namespace shardtune::adapters
