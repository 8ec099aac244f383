// {"messages": [{"role": ..., "content": ...}, ...]}.
#include <algorithm>

#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {

std::vector<Record> read_messages(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"messages"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    record.messages = row.messages("messages");
    const bool answered = std::any_of(record.messages.begin(), record.messages.end(),
                                      [](const Message& m) { return m.role == "assistant"; });
    if (!answered)
      row.fail(row.key("messages"), "a message of the assistant", "none", "Add the answer.");
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
