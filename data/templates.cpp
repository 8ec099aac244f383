#include "data/templates.h"

#include <algorithm>
#include <array>

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
      if (role != "system" && role != "user" && role != "assistant")
        throw DataError("messages[" + std::to_string(i) + "].role: expected system, user or " +
                        "assistant, found '" + role.substr(0, 80) + "'. Rename the role.");
    }
  }

  std::string_view name_;
  std::string_view default_system_;
};

/// The text without white space, and without the "\\n" of Jinja strings, which files hold either
/// as that escape or as a line break: quotes and layout of a Jinja text vary between releases.
std::string squeezed(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() && text[i + 1] == 'n')
      ++i;
    else if (text[i] != ' ' && text[i] != '\n' && text[i] != '\r' && text[i] != '\t')
      result += text[i];
  }
  return result;
}

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// Parts of other families, or of richer templates over the same marks: with one of them the text
/// is not plain ChatML and rendering it as such would train on wrong prompts.
constexpr std::array<std::string_view, 10> kBeyondChatMl = {
    "tools",        "tool_call", "<think>",    "enable_thinking", "raise_exception",
    "strftime_now", "bos_token", "<|eot_id|>", "[INST]",          "|trim"};

}  // namespace

std::unique_ptr<ChatTemplate> make_chatml() { return std::make_unique<ChatMl>("chatml", ""); }

std::unique_ptr<ChatTemplate> make_smollm2() {
  return std::make_unique<ChatMl>("smollm2", kSmolLmSystem);
}

std::string recognise_chat_template(std::string_view template_text) {
  const std::string text = squeezed(template_text);
  if (!has(text, "<|im_start|>") || !has(text, "<|im_end|>"))
    return "";
  for (const std::string_view part : kBeyondChatMl) {
    if (has(text, part))
      return "";
  }
  // The mark, then role, line break and content, as ChatML has them.
  if (!has(text, "<|im_start|>'+message['role']+''+message['content']+'<|im_end|>'") &&
      !has(text, "<|im_start|>\"+message[\"role\"]+\"\"+message[\"content\"]+\"<|im_end|>\"") &&
      !has(text, "<|im_start|>'+message.role+''+message.content+'<|im_end|>'"))
    return "";
  if (has(text, "<|im_start|>system")) {
    return has(text, squeezed(kSmolLmSystem) + "<|im_end|>") &&
                   has(text, "messages[0]['role']!='system'")
               ? "smollm2"
               : "";
  }
  return "chatml";
}

}  // namespace shardtune::data
