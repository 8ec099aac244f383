// {"prompt": ..., "completion": ...}: two strings, or lists of messages (TRL's conversational
// form).
#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {
namespace {

std::vector<Message> part(const Row& row, const char* word, const char* role) {
  const io::Json* value = row.find(word);
  if (value != nullptr && value->is_array())
    return row.messages(word);
  return {{role, row.text(word)}};
}

}  // namespace

std::vector<Record> read_completion(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"prompt", "completion"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    record.messages = part(row, "prompt", "user");
    const std::vector<Message> answer = part(row, "completion", "assistant");
    record.raw = row.find("prompt")->is_string() && row.find("completion")->is_string();
    record.messages.insert(record.messages.end(), answer.begin(), answer.end());
    const Message& last = record.messages.back();
    if (last.role != "assistant")
      row.fail(row.key("completion"), "messages ending with an assistant's",
               "one of '" + last.role + "'", "Put the answer last.");
    if (last.content.empty())
      row.fail(row.key("completion"), "an answer", "an empty string",
               "Remove the record or fill it in.");
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
