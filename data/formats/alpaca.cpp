// {"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[q, a], ...]}: the
// instruction, a line end and the input are the user's text, as other trainers join them.
#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {
namespace {

/// The text of the word, "" where it is absent.
std::string optional_text(const Row& row, const char* word) {
  return row.find(word) != nullptr ? row.text(word) : std::string();
}

void add_history(const Row& row, Record& record) {
  const io::Json* history = row.find("history");
  if (history == nullptr)
    return;
  if (!history->is_array())
    row.fail(row.key("history"), "a list of pairs", std::string(history->type_name()),
             "Write [[question, answer], ...].");
  for (std::size_t i = 0; i < history->as_array().size(); ++i) {
    const io::Json& pair = history->as_array()[i];
    if (!pair.is_array() || pair.as_array().size() != 2 || !pair.as_array()[0].is_string() ||
        !pair.as_array()[1].is_string() || pair.as_array()[1].as_string().empty())
      row.fail(row.key("history") + "[" + std::to_string(i) + "]",
               "a question and an answer, both strings", pair.dump().substr(0, 80),
               "Write [question, answer].");
    record.messages.push_back({"user", pair.as_array()[0].as_string()});
    record.messages.push_back({"assistant", pair.as_array()[1].as_string()});
  }
}

}  // namespace

std::vector<Record> read_alpaca(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"instruction", "input", "output", "system", "history"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    if (const std::string system = optional_text(row, "system"); !system.empty())
      record.messages.push_back({"system", system});
    add_history(row, record);
    std::string prompt = row.text("instruction");
    std::size_t input_begin = std::string::npos;
    if (const std::string input = optional_text(row, "input"); prompt.empty()) {
      prompt = input;
    } else if (!input.empty()) {
      input_begin = prompt.size() + 1;
      prompt += "\n" + input;
    }
    if (prompt.empty())
      row.fail(row.key("instruction"), "an instruction", "an empty string",
               "Remove the record or fill it in.");
    const std::string& answer = row.text("output");
    if (answer.empty())
      row.fail(row.key("output"), "an answer", "an empty string",
               "Remove the record or fill it in.");
    record.messages.push_back({"user", std::move(prompt), input_begin});
    record.messages.push_back({"assistant", answer});
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
