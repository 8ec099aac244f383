#include "data/chat_template.h"

#include "core/error.h"
#include "data/templates/templates.h"
#include "data/tokenizer.h"

namespace shardtune::data {

std::string ChatTemplate::render_text(const std::vector<Message>& messages,
                                      GenerationPrompt prompt) const {
  std::string text;
  for (const RenderedPiece& piece : render(messages, prompt))
    text += piece.text;
  return text;
}

TemplateTokens template_tokens(const Tokenizer& tokenizer) {
  const auto text_of = [&tokenizer](std::optional<int32_t> id) {
    return id ? tokenizer.decode({*id}, {}) : std::string();
  };
  return {text_of(tokenizer.bos_id()), text_of(tokenizer.eos_id())};
}

std::unique_ptr<ChatTemplate> make_chat_template(const std::string& name_or_auto,
                                                 std::string_view model_template_text,
                                                 const TemplateTokens& tokens) {
  if (name_or_auto != "auto")
    return chat_templates().at(name_or_auto)(tokens);
  const std::string_view name = recognise_chat_template(model_template_text);
  if (!name.empty())
    return chat_templates().at(name)(tokens);
  std::string known;
  for (const std::string& each : chat_templates().names())
    known += (known.empty() ? "" : ", ") + each;
  throw UnsupportedError(
      std::string("chat_template: auto: expected a model with one of the "
                  "templates ") +
      known + ", found " +
      (model_template_text.empty() ? "a model without template"
                                   : "a template that is not one of them (digest " +
                                         chat_template_digest(model_template_text) + ")") +
      ". Name the one that this model was trained with: 'chat_template: NAME' under data, or "
      "--chat-template NAME.");
}

std::unique_ptr<ChatTemplate> make_chat_template(const std::string& name_or_auto,
                                                 const Tokenizer& tokenizer) {
  return make_chat_template(name_or_auto, tokenizer.chat_template_text(),
                            template_tokens(tokenizer));
}

}  // namespace shardtune::data
