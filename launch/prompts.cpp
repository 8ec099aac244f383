#include "launch/prompts.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"
#include "data/dataset.h"
#include "io/file.h"

namespace shardtune::launch {
namespace {

constexpr int64_t kMaxPromptFileBytes = 1ll << 30;

std::string text_member(const io::Json& object, std::string_view key, const std::string& where) {
  const io::Json* member = object.find(key);
  if (member == nullptr || !member->is_string())
    throw DataError(where + ": " + std::string(key) + ": expected a string, found " +
                    std::string(member == nullptr ? "nothing" : member->type_name()) +
                    ". Write for example {\"role\": \"user\", \"content\": \"Hello\"}.");
  return member->as_string();
}

Prompt prompt_from(const io::Json& json, const std::string& where) {
  Prompt prompt;
  if (json.find("messages") != nullptr) {
    prompt.messages = messages_from_json(json, where);
    prompt.text = prompt.messages.back().content;
    return prompt;
  }
  const io::Json* text = json.find("prompt");
  if (text == nullptr || !text->is_string())
    throw DataError(where + ": prompt: expected a string, found " +
                    std::string(text == nullptr ? "nothing" : text->type_name()) +
                    ". Write lines like {\"prompt\": \"Hello\"}.");
  prompt.text = text->as_string();
  prompt.messages = {{"user", prompt.text}};
  return prompt;
}

}  // namespace

std::vector<data::Message> messages_from_json(const io::Json& json, const std::string& where) {
  const io::Json* list = json.is_object() ? json.find("messages") : &json;
  if (list == nullptr || !list->is_array() || list->as_array().empty())
    throw DataError(where + ": expected a list of messages, found " +
                    std::string(list == nullptr ? json.type_name() : list->type_name()) +
                    ". Write [{\"role\": \"user\", \"content\": \"Hello\"}].");
  std::vector<data::Message> messages;
  for (const io::Json& entry : list->as_array()) {
    const std::string place = where + ": messages[" + std::to_string(messages.size()) + "]";
    data::Message message{text_member(entry, "role", place), ""};
    if (const io::Json* calls = entry.find("tool_calls"); calls != nullptr && !calls->is_null())
      message.tool_calls = data::tool_calls_from_json(*calls, place + ".tool_calls");
    if (const io::Json* id = entry.find("tool_call_id"); id != nullptr && id->is_string())
      message.tool_call_id = id->as_string();
    const io::Json* content = entry.find("content");
    if (message.tool_calls.empty() || (content != nullptr && !content->is_null()))
      message.content = text_member(entry, "content", place);
    messages.push_back(std::move(message));
  }
  return messages;
}

std::vector<int32_t> encode_turns(const std::vector<data::Message>& messages,
                                  const data::Tokenizer& tokenizer,
                                  const data::ChatTemplate& chat) {
  const bool is_answered = messages.back().role == "assistant";
  return data::encode_chat(
      messages, tokenizer, chat,
      is_answered ? data::GenerationPrompt::kNone : data::GenerationPrompt::kAppend);
}

std::vector<Prompt> read_prompts(const std::string& path) {
  const std::string text = io::read_text_file(path, kMaxPromptFileBytes);
  std::vector<Prompt> prompts;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos)
      continue;
    const std::string where = path + ":" + std::to_string(line_number);
    prompts.push_back(prompt_from(io::parse_json(line, where), where));
  }
  if (prompts.empty())
    throw DataError(path + ": expected lines like {\"prompt\": \"Hello\"}, found none.");
  return prompts;
}

}  // namespace shardtune::launch
