// The calls of a message, as OpenAI writes them.
#include "core/error.h"
#include "data/chat_template.h"

namespace shardtune::data {
namespace {

constexpr std::string_view kAdvice =
    ". Write {\"type\": \"function\", \"function\": {\"name\": \"...\", \"arguments\": {...}}}.";

[[noreturn]] void fail(const std::string& where, const std::string& expected,
                       const io::Json* found) {
  throw DataError(where + ": expected " + expected + ", found " +
                  std::string(found == nullptr ? "no such key" : found->type_name()) +
                  std::string(kAdvice));
}

/// An object, or its text (OpenAI's own form).
io::Json arguments_of(const io::Json& function, const std::string& where) {
  const io::Json* arguments = function.find("arguments");
  if (arguments == nullptr)
    fail(where, "an object", nullptr);
  if (!arguments->is_string()) {
    if (!arguments->is_object())
      fail(where, "an object", arguments);
    return *arguments;
  }
  io::Json parsed = io::parse_json(arguments->as_string(), where);
  if (!parsed.is_object())
    fail(where, "the text of an object", &parsed);
  return parsed;
}

}  // namespace

std::vector<ToolCall> tool_calls_from_json(const io::Json& list, const std::string& where) {
  if (!list.is_array())
    fail(where, "a list of calls", &list);
  std::vector<ToolCall> calls;
  for (const io::Json& entry : list.as_array()) {
    const std::string place = where + "[" + std::to_string(calls.size()) + "]";
    if (!entry.is_object())
      fail(place, "an object", &entry);
    // Some files leave out the outer object.
    const io::Json* inner = entry.find("function");
    const io::Json& function = inner != nullptr ? *inner : entry;
    const std::string path = inner != nullptr ? place + ".function" : place;
    const io::Json* name = function.find("name");
    if (name == nullptr || !name->is_string() || name->as_string().empty())
      fail(path + ".name", "the function's name", name);
    ToolCall call{name->as_string(), arguments_of(function, path + ".arguments"), ""};
    if (const io::Json* id = entry.find("id"); id != nullptr && id->is_string())
      call.id = id->as_string();
    calls.push_back(std::move(call));
  }
  return calls;
}

}  // namespace shardtune::data
