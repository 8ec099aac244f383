// Prompts as token ids: raw text, or turns through the chat template.
#pragma once

#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "io/json.h"

namespace shardtune::launch {

/// {"role": ..., "content": ...} objects in order, or {"messages": [...]}.
/// DataError naming `where`, the index and the key.
std::vector<data::Message> messages_from_json(const io::Json& json, const std::string& where);

/// Ids of the turns; the generation prompt is appended unless the last turn is the assistant's.
std::vector<int32_t> encode_turns(const std::vector<data::Message>& messages,
                                  const data::Tokenizer& tokenizer, const data::ChatTemplate& chat);

/// One line of a --prompts file.
struct Prompt {
  std::string text;  // the prompt, or the last turn's content
  std::vector<data::Message> messages;
};
/// JSON lines with "prompt" or "messages". MissingInputError, DataError naming file, line and key.
std::vector<Prompt> read_prompts(const std::string& path);

}  // namespace shardtune::launch
