// What eval, generate and export have in common: a model on one process, perhaps with an adapter,
// its tokenizer and chat template, loaded from the same options.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "export/provenance.h"
#include "launch/command_line.h"
#include "models/model.h"
#include "parallel/sharded_store.h"

namespace shardtune::launch {

/// A model with the store that holds it.
struct StoredModel {
  std::unique_ptr<parallel::Communicator> communicator;
  std::unique_ptr<parallel::ShardedParameterStore> store;
  std::unique_ptr<models::Model> model;
};
StoredModel load_alone(const models::ModelSource& source, const models::LoadOptions& options);

/// --model --adapter --quantization --compute-dtype --chat-template --threads as given.
struct ModelArguments {
  std::string model;
  std::string adapter;        // "" without
  std::string quantization;   // "" = as the adapter was trained, else as stored
  std::string compute_dtype;  // auto | float32 | bfloat16 | int8; "" = as trained
  std::string chat_template;  // "" = as the adapter was trained, else auto
  int64_t task_id = -1;       // of an adapter with tasks; -1: not given
};
void add_model_options(CommandLine& line);
ModelArguments model_arguments(const CommandLine& line);

class Session {
 public:
  /// Checks what is cheap first, so that what is wrong is told before weights are read.
  /// Errors  those of load_model and load_adapter; DataError: the adapter was trained on another
  /// base
  Session(const ModelArguments& arguments, std::unique_ptr<models::ModelSource> source);

  const models::ModelSource& source() const { return *source_; }
  models::Model& model() const { return *stored_.model; }
  adapters::Adapter* adapter() const { return adapter_.get(); }
  std::vector<models::Hooks*> hooks() const;
  const exporting::Provenance& provenance() const { return provenance_; }
  parallel::Communicator& communicator() const { return *stored_.communicator; }

 private:
  std::unique_ptr<models::ModelSource> source_;
  exporting::Provenance provenance_;
  StoredModel stored_;
  std::unique_ptr<adapters::Adapter> adapter_;
};

/// The template for prompts: by --chat-template, the adapter's shardtune.json, or the model's own.
/// nullptr for "none". UnsupportedError: the model's template is not known.
std::unique_ptr<data::ChatTemplate> chat_template_for(const ModelArguments& arguments,
                                                      const data::Tokenizer& tokenizer);

}  // namespace shardtune::launch
