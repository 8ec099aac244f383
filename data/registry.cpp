// The tables of chat templates and data formats.
#include "data/chat_template.h"
#include "data/dataset.h"
#include "data/formats/formats.h"
#include "data/templates/templates.h"

namespace shardtune::data {

const Registry<ChatTemplateFactory>& chat_templates() {
  static const Registry<ChatTemplateFactory> registry(
      "chat_template", {{"alpaca", &make_alpaca},
                        {"chatml", &make_chatml},
                        {"gemma", &make_gemma},
                        {"llama2", &make_llama2},
                        {"llama3", &make_llama3},
                        {"llama3.1", &make_llama3_1},
                        {"mistral-v0", &make_mistral_v0},
                        {"mistral-v1", &make_mistral_v1},
                        {"mistral-v3", &make_mistral_v3},
                        {"mistral-v3-tekken", &make_mistral_v3_tekken},
                        {"qwen2", &make_qwen2},
                        {"qwen2.5", &make_qwen2_5},
                        {"smollm2", &make_smollm2},
                        {"vicuna", &make_vicuna},
                        {"zephyr", &make_zephyr}});
  return registry;
}

const Registry<FormatReader>& dataset_formats() {
  static const Registry<FormatReader> registry("data.format", {{"alpaca", &read_alpaca},
                                                               {"completion", &read_completion},
                                                               {"messages", &read_messages},
                                                               {"openai", &read_messages},
                                                               {"sharegpt", &read_sharegpt},
                                                               {"text", &read_text}});
  return registry;
}

}  // namespace shardtune::data
