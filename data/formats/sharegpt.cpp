// {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}], "system": ...,
// "tools": ...}. A function call is a turn of the assistant, what it returned one of the tool; the
// tools that a record lists stand at the end of its system message.
#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {
std::vector<Record> read_sharegpt(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"conversations", "from", "value", "system", "tools"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    record.messages = row.messages("conversations", {"from", "value"});
    row.add_system("conversations", record.messages);
    row.require_answer("conversations", record.messages);
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
