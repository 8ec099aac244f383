// {"messages": [{"role": ..., "content": ..., "tool_calls": [...]}, ...], "tools": [...]}, as
// OpenAI and TRL write them.
#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {

std::vector<Record> read_messages(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"messages", "role", "content", "system", "tools"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    record.messages = row.messages("messages");
    row.add_system("messages", record.messages);
    row.require_answer("messages", record.messages);
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
