// {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}], "system": ...,
// "tools": ...}. A function call is a turn of the assistant, what it returned one of the tool; the
// tools that a record lists stand at the end of its system message.
#include <algorithm>

#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {
namespace {

std::string system_of(const Row& row) {
  std::string system = row.find("system") != nullptr ? row.text("system") : std::string();
  const io::Json* tools = row.find("tools");
  if (tools == nullptr)
    return system;
  const std::string list = tools->is_string() ? tools->as_string() : tools->dump();
  if (!list.empty() && list != "[]")
    system += (system.empty() ? "" : "\n\n") + ("You can call these tools: " + list);
  return system;
}

}  // namespace

std::vector<Record> read_sharegpt(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"conversations", "from", "value", "system", "tools"});
  std::vector<Record> records;
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    const std::string system = system_of(row);
    record.messages = row.messages("conversations", {"from", "value"});
    if (!system.empty() && record.messages.front().role == "system")
      row.fail(row.key("conversations") + "[0]",
               "no message of the system beside 'system' or "
               "'tools'",
               "one", "Put its text into 'system'.");
    if (!system.empty())
      record.messages.insert(record.messages.begin(), {"system", system});
    row.require_answer("conversations", record.messages);
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
