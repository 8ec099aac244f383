#include "data/chat_template.h"

#include "core/error.h"
#include "data/templates.h"

namespace shardtune::data {

std::string ChatTemplate::render_text(const std::vector<Message>& messages,
                                      GenerationPrompt prompt) const {
  std::string text;
  for (const RenderedPiece& piece : render(messages, prompt))
    text += piece.text;
  return text;
}

std::unique_ptr<ChatTemplate> make_chat_template(const std::string& name_or_auto,
                                                 std::string_view model_template_text) {
  if (name_or_auto != "auto")
    return chat_templates().at(name_or_auto)();
  const std::string name = recognise_chat_template(model_template_text);
  if (!name.empty())
    return chat_templates().at(name)();
  std::string known;
  for (const std::string& each : chat_templates().names())
    known += (known.empty() ? "" : ", ") + each;
  throw UnsupportedError(std::string("data.chat_template: auto: expected a model with one of the "
                                     "templates ") +
                         known + ", found " +
                         (model_template_text.empty() ? "a model without template"
                                                      : "a template that is not one of them") +
                         ". Name one, or see docs/status.md for those to come.");
}

}  // namespace shardtune::data
