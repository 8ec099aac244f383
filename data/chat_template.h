// Chat templates by name, written in C++ (no Jinja): messages to text, with the spans that an
// assistant-trained run learns. The end-of-turn token of an assistant span is always inside it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/registry.h"
#include "io/json.h"

namespace shardtune::data {

class Tokenizer;

/// A call that an assistant makes: OpenAI's {"id", "function": {"name", "arguments"}}.
struct ToolCall {
  std::string name;
  io::Json arguments;  // an object
  std::string id;      // "" where the data gives none
};

/// The calls of a message's "tool_calls". Arguments may be an object or its JSON text.
/// DataError "where[i]....: expected ..., found ..."
std::vector<ToolCall> tool_calls_from_json(const io::Json& list, const std::string& where);

struct Message {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
  /// Where in `content` the input of an alpaca record begins (npos: no input): the alpaca template
  /// alone writes it apart from the instruction.
  std::size_t input_begin = std::string::npos;
  std::vector<ToolCall> tool_calls{};  // of the assistant; content may then be empty
  std::string tool_call_id{};          // of the tool: the call that this is the result of
};

/// A piece of rendered text. Template pieces hold special tokens; content pieces are the user's
/// text, in which special tokens are not parsed when training or prompting with `kPlain`.
struct RenderedPiece {
  std::string text;
  bool is_template = true;
  bool is_assistant = false;  // answer text or the end-of-turn token closing it
  int message_index = -1;
};

enum class GenerationPrompt { kAppend, kNone };

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  virtual std::string_view name() const = 0;
  /// DataError naming the message index and role when a role or order cannot be rendered, or when
  /// the reference would leave a message out without a word.
  virtual std::vector<RenderedPiece> render(const std::vector<Message>& messages,
                                            GenerationPrompt prompt) const = 0;
  std::string render_text(const std::vector<Message>& messages, GenerationPrompt prompt) const;
};

/// Texts of the model's own first and last token, "" for one that it lacks.
struct TemplateTokens {
  std::string bos;
  std::string eos;
};
TemplateTokens template_tokens(const Tokenizer& tokenizer);

using ChatTemplateFactory = std::unique_ptr<ChatTemplate> (*)(const TemplateTokens& tokens);
const Registry<ChatTemplateFactory>& chat_templates();

/// Template by name, or for "auto" the one whose text the model carries (the whole text is compared
/// in one spelling of it).
/// ConfigError: an unknown name; a template that closes answers with eos, for a model without one.
/// UnsupportedError: "auto" with a text that is not known, or no text; lists the names.
std::unique_ptr<ChatTemplate> make_chat_template(const std::string& name_or_auto,
                                                 std::string_view model_template_text,
                                                 const TemplateTokens& tokens);
std::unique_ptr<ChatTemplate> make_chat_template(const std::string& name_or_auto,
                                                 const Tokenizer& tokenizer);

}  // namespace shardtune::data
