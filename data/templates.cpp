#include "data/templates.h"

#include "core/error.h"

namespace shardtune::data {
namespace {

constexpr std::string_view kSmolLmSystem =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// The family of <|im_start|>role\ncontent<|im_end|>\n; `default_system` is inserted when the first
/// message is not one of the system ("" inserts none).
class ChatMl : public ChatTemplate {
 public:
  ChatMl(std::string_view name, std::string_view default_system)
      : name_(name), default_system_(default_system) {}

  std::string_view name() const override { return name_; }

  std::vector<RenderedPiece> render(const std::vector<Message>& messages,
                                    GenerationPrompt prompt) const override {
    check(messages);
    std::vector<RenderedPiece> pieces;
    if (!default_system_.empty() && messages.front().role != "system") {
      pieces.push_back({"<|im_start|>system\n" + std::string(default_system_) + "<|im_end|>\n"});
    }
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const Message& message = messages[i];
      const bool assistant = message.role == "assistant";
      const int index = static_cast<int>(i);
      pieces.push_back({"<|im_start|>" + message.role + "\n", true, false, index});
      pieces.push_back({message.content, false, assistant, index});
      pieces.push_back({"<|im_end|>", true, assistant, index});
      pieces.push_back({"\n", true, false, index});
    }
    if (prompt == GenerationPrompt::kAppend)
      pieces.push_back({"<|im_start|>assistant\n"});
    return pieces;
  }

 private:
  void check(const std::vector<Message>& messages) const {
    if (messages.empty())
      throw DataError("messages: expected at least one, found none. Add a message.");
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const std::string& role = messages[i].role;
      if (role != "system" && role != "user" && role != "assistant" && role != "tool")
        throw DataError("messages[" + std::to_string(i) + "].role: expected system, user, " +
                        "assistant or tool, found '" + role.substr(0, 80) + "'. Rename the role.");
    }
  }

  std::string_view name_;
  std::string_view default_system_;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

/// One spelling of a Jinja text: no white space outside strings, single quotes, line breaks of
/// strings as the escape \n, neighbouring strings joined, attributes by index, no trimming marks.
std::string canonical(std::string_view text) {
  std::string result;
  char quote = 0;
  for (const char c : text) {
    const bool is_quote = c == '\'' || c == '"';
    if (quote != 0 && c == quote) {
      quote = 0;
      result += '\'';
    } else if (quote == 0 && is_quote) {
      quote = c;
      result += '\'';
    } else if (quote != 0 && c == '\n') {
      result += "\\n";
    } else if (quote != 0 || (c != ' ' && c != '\t' && c != '\n' && c != '\r')) {
      result += c;
    }
  }
  replace_all(result, "'+'", "");
  replace_all(result, "{%-", "{%");
  replace_all(result, "-%}", "%}");
  replace_all(result, "{{-", "{{");
  replace_all(result, "-}}", "}}");
  replace_all(result, "message.role", "message['role']");
  replace_all(result, "message.content", "message['content']");
  replace_all(result, "messages[0].role", "messages[0]['role']");
  return result;
}

constexpr std::string_view kForMessages = "{%for message in messages%}";
constexpr std::string_view kMessage =
    "{{'<|im_start|>'+message['role']+'\\n'+message['content']+'<|im_end|>\\n'}}{%endfor%}";
constexpr std::string_view kPrompt =
    "{%if add_generation_prompt%}{{'<|im_start|>assistant\\n'}}{%endif%}";
/// Older files give add_generation_prompt a value first.
constexpr std::string_view kPromptDefault =
    "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}";

std::string smollm_insertion() {
  return "{%if loop.first and messages[0]['role']!='system'%}{{'<|im_start|>system\\n" +
         std::string(kSmolLmSystem) + "<|im_end|>\\n'}}{%endif%}";
}

}  // namespace

std::unique_ptr<ChatTemplate> make_chatml() { return std::make_unique<ChatMl>("chatml", ""); }

std::unique_ptr<ChatTemplate> make_smollm2() {
  return std::make_unique<ChatMl>("smollm2", kSmolLmSystem);
}

std::string recognise_chat_template(std::string_view template_text) {
  // The whole text is compared: one that only contains the familiar parts may render otherwise, and
  // a run would train on prompts that the model never meets again.
  std::string text = canonical(template_text);
  if (const std::string optional = canonical(kPromptDefault); text.starts_with(optional))
    text.erase(0, optional.size());
  const std::string begin(kForMessages);
  const std::string end = std::string(kMessage) + std::string(kPrompt);
  if (text == canonical(begin + end))
    return "chatml";
  if (text == canonical(begin + smollm_insertion() + end))
    return "smollm2";
  return "";
}

}  // namespace shardtune::data
