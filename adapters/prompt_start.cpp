#include "adapters/prompt_start.h"

#include "core/rng.h"

namespace shardtune::adapters {

namespace {

std::vector<int32_t> tokens_of(const PromptStart& start, const models::Model& model,
                               const InitContext& context, const AdapterTensor& prompt) {
  const auto count = static_cast<size_t>(prompt.shape[0]);
  std::vector<int32_t> ids;
  if (start.init == "SAMPLE_VOCAB") {
    const CounterRng rng(mix_key(context.seed, prompt.name + ".sample_vocab"));
    for (size_t i = 0; i < count; ++i) {
      ids.push_back(
          static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(model.config().vocab_size))));
    }
    return ids;
  }
  SHARDTUNE_ASSERT(context.encode != nullptr);
  const std::vector<int32_t> text = context.encode(start.text);
  if (text.empty()) {
    throw ConfigError(
        "adapter.prompt_tuning_init_text: expected a text with at least one token, found none.");
  }
  for (size_t i = 0; i < count; ++i)
    ids.push_back(text[i % text.size()]);
  return ids;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> PromptStart::keys() const {
  std::vector<std::pair<std::string, std::string>> keys = {{"prompt_tuning_init", init}};
  if (init == "TEXT")
    keys.emplace_back("prompt_tuning_init_text", io::Json(text).dump());
  return keys;
}

// PEFT refuses TEXT without a tokenizer's name.
void PromptStart::add_peft_keys(const std::string& base_model,
                                std::vector<std::pair<std::string, io::Json>>& own) const {
  const bool is_text = init == "TEXT";
  own.emplace_back("prompt_tuning_init", init);
  own.emplace_back("prompt_tuning_init_text", is_text ? io::Json(text) : io::Json());
  own.emplace_back("tokenizer_kwargs", nullptr);
  own.emplace_back("tokenizer_name_or_path", is_text ? io::Json(base_model) : io::Json());
}

Tensor PromptStart::embeddings(const models::Model& model, const InitContext& context,
                               const AdapterTensor& prompt) const {
  if (init != "TEXT" && init != "SAMPLE_VOCAB")
    return {};
  Tensor rows(prompt.shape, DType::kFloat32);
  model.tables()[0]->lookup(tokens_of(*this, model, context, prompt), rows);
  return rows;
}

PromptStart read_prompt_start(const OptionReader& reader, const std::vector<std::string>& choices) {
  PromptStart start;
  start.init = reader.choice("prompt_tuning_init", "RANDOM", choices);
  start.text = reader.text("prompt_tuning_init_text", "");
  const bool is_run = reader.source() == OptionReader::Source::kRun;
  for (const char* key : {"tokenizer_kwargs", "tokenizer_name_or_path"}) {
    if (reader.has(key) && is_run)
      reader.error(key, "is not read: the text is encoded by the model's own tokenizer.");
  }
  if (is_run && start.init == "TEXT" && start.text.empty()) {
    reader.error("prompt_tuning_init_text",
                 "expected a text for prompt_tuning_init 'TEXT', found "
                 "none. Write for example 'prompt_tuning_init_text: "
                 "\"Answer in JSON:\"'.");
  }
  if (is_run && start.init != "TEXT" && reader.has("prompt_tuning_init_text"))
    reader.error("prompt_tuning_init_text", "has no effect without 'prompt_tuning_init: TEXT'.");
  return start;
}

}  // namespace shardtune::adapters
