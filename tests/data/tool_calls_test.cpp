#include <gtest/gtest.h>

#include "core/error.h"
#include "data/dataset.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::expect_error;
using testing::TempFolder;

std::vector<Record> read(const std::string& name, const std::string& text) {
  const TempFolder folder;
  return read_records({folder.write(name, text), "auto", {}});
}

TEST(DataFormats, ReadsCallsOfToolsAndTheirResults) {
  const auto records = read("a.json", R"([{"tools": [{"name": "f"}], "messages": [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": null, "tool_calls": [
      {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
      {"function": {"name": "g", "arguments": "{\"b\": [2.0]}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
    {"role": "assistant", "content": "one"}]}])");
  ASSERT_EQ(records.size(), 1u);
  const auto& messages = records[0].messages;
  EXPECT_EQ(messages[0].content, "You can call these tools: [{\"name\":\"f\"}]");
  ASSERT_EQ(messages[2].tool_calls.size(), 2u);
  EXPECT_EQ(messages[2].content, "");
  EXPECT_EQ(messages[2].tool_calls[0].id, "c1");
  EXPECT_EQ(messages[2].tool_calls[1].name, "g");
  EXPECT_EQ(messages[2].tool_calls[1].arguments.dump(), R"({"b":[2.0]})");
  EXPECT_EQ(messages[3].tool_call_id, "c1");
}

TEST(DataFormats, WrongCallsAreNamed) {
  const std::pair<std::string, std::string> cases[] = {
      {R"([1])", "tool_calls[0]: expected an object, found integer"},
      {R"({"name": "f"})", "tool_calls: expected a list of calls, found object"},
      {R"([{"function": {"arguments": {}}}])", "tool_calls[0].function.name"},
      {R"([{"function": {"name": "f"}}])", "arguments: expected an object, found no such key"},
      {R"([{"function": {"name": "f", "arguments": [1]}}])", "found array"},
      {R"([{"function": {"name": "f", "arguments": "{"}}])", "function.arguments"},
      {R"([{"function": {"name": "f", "arguments": "3"}}])", "the text of an object"}};
  for (const auto& [calls, part] : cases)
    expect_error<DataError>(
        [&] {
          read("a.jsonl", R"({"messages": [{"role": "assistant", "content": "", "tool_calls": )" +
                              calls + "}]}");
        },
        {"a.jsonl:1: messages[0].tool_calls", part});
  expect_error<DataError>(
      [] {
        read(
            "a.jsonl",
            R"({"messages": [{"role": "user", "content": "x", "tool_calls": [{"name": "f", "arguments": {}}]}]})");
      },
      {"messages[0].tool_calls", "assistant alone"});
}

}  // namespace
}  // namespace shardtune::data
