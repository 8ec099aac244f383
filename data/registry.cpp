// The tables of chat templates and data formats.
#include "data/chat_template.h"
#include "data/dataset.h"
#include "data/formats/formats.h"
#include "data/templates.h"

namespace shardtune::data {

const Registry<ChatTemplateFactory>& chat_templates() {
  static const Registry<ChatTemplateFactory> registry(
      "data.chat_template", {{"chatml", &make_chatml}, {"smollm2", &make_smollm2}});
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
