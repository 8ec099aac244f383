#include <algorithm>

#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// Goes through the text and counts lines on the way.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {
    if (text_.substr(0, 3) == "\xEF\xBB\xBF")  // byte order mark
      at_ = 3;
  }

  bool done() const { return at_ >= text_.size(); }
  char peek() const { return text_[at_]; }
  int64_t line() const { return line_; }
  std::size_t at() const { return at_; }
  void advance() {
    if (text_[at_++] == '\n')
      ++line_;
  }
  void skip_space() {
    while (!done() && is_space(peek()))
      advance();
  }
  /// To the end of the line; the line without its break.
  std::string_view take_line() {
    const std::size_t end = std::min(text_.find('\n', at_), text_.size());
    const std::string_view line = text_.substr(at_, end - at_);
    at_ = end;
    if (!done())
      advance();
    return line;
  }
  /// To the comma or bracket that ends an element of an array: brackets in pairs, strings skipped.
  std::string_view take_element() {
    const std::size_t begin = at_;
    int64_t depth = 0;
    while (!done()) {
      const char c = peek();
      if (depth == 0 && (c == ',' || c == ']'))
        break;
      if (c == '"') {
        skip_string();
        continue;
      }
      if (c == '{' || c == '[')
        ++depth;
      if (c == '}' || c == ']')
        --depth;
      advance();
    }
    return text_.substr(begin, at_ - begin);
  }

 private:
  void skip_string() {
    advance();
    while (!done() && peek() != '"') {
      if (peek() == '\\')
        advance();
      if (!done())
        advance();
    }
    if (!done())
      advance();
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int64_t line_ = 1;
};

std::string place(const DatasetFile& file, int64_t line) {
  return file.path + ":" + std::to_string(line);
}

void use_row(const DatasetFile& file, int64_t line, std::string_view text,
             const std::function<void(const Row&)>& use) {
  io::JsonLimits limits;
  limits.max_bytes = kMaxDataRecordBytes;
  const io::Json object = io::parse_json(text, place(file, line), limits);
  if (!object.is_object())
    throw DataError(place(file, line) + ": expected an object, found " +
                    std::string(object.type_name()) +
                    ". Write one JSON object per line, or an array of objects.");
  use(Row(file, line, object));
}

void rows_of_array(const DatasetFile& file, Scanner& scanner, int64_t limit,
                   const std::function<void(const Row&)>& use) {
  scanner.advance();  // [
  scanner.skip_space();
  int64_t count = 0;
  bool closed = !scanner.done() && scanner.peek() == ']';
  while (!closed && (limit == 0 || count < limit)) {
    scanner.skip_space();
    const int64_t line = scanner.line();
    const std::string_view element = scanner.take_element();
    if (scanner.done())
      throw DataError(place(file, scanner.line()) +
                      ": expected ']' at the end of the array, found the end of the file. "
                      "The file is cut off: fetch it again.");
    use_row(file, line, element, use);
    ++count;
    closed = scanner.peek() == ']';
    scanner.advance();
  }
  if (!closed)
    return;
  if (count == 0)
    scanner.advance();
  scanner.skip_space();
  if (!scanner.done())
    throw DataError(place(file, scanner.line()) +
                    ": expected the end of the file after the array, found more text. "
                    "Write one array, or one object per line.");
}

void walk_rows(const DatasetFile& file, const std::string& text, int64_t limit,
               const std::function<void(const Row&)>& use) {
  Scanner scanner(text);
  scanner.skip_space();
  if (!scanner.done() && scanner.peek() == '[') {
    rows_of_array(file, scanner, limit, use);
    return;
  }
  for (int64_t count = 0; limit == 0 || count < limit; ++count) {
    scanner.skip_space();
    if (scanner.done())
      return;
    const int64_t line = scanner.line();
    use_row(file, line, scanner.take_line(), use);
  }
}

/// Our name of a role, "" for one that is not known.
std::string role_of(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kRoles[] = {
      {"system", "system"},
      {"user", "user"},
      {"human", "user"},
      {"assistant", "assistant"},
      {"gpt", "assistant"},
      {"model", "assistant"},
      {"function_call", "assistant"},
      {"tool", "tool"},
      {"observation", "tool"},
      {"ipython", "tool"}};
  for (const auto& [theirs, ours] : kRoles) {
    if (theirs == name)
      return std::string(ours);
  }
  return "";
}

/// What a message has to do with tools: its calls, or whose result it is.
void add_tools(const io::Json& entry, Message& message, const std::string& where) {
  const io::Json* calls = entry.find("tool_calls");
  if (calls != nullptr && !calls->is_null()) {
    message.tool_calls = tool_calls_from_json(*calls, where + ".tool_calls");
    if (!message.tool_calls.empty() && message.role != "assistant")
      throw DataError(where +
                      ".tool_calls: expected calls of the assistant alone, found them in a " +
                      "message of '" + message.role + "'. Rename the role.");
  }
  if (const io::Json* id = entry.find("tool_call_id"); id != nullptr && id->is_string())
    message.tool_call_id = id->as_string();
}

}  // namespace

void RecordErrors::add(const DataError& error) {
  ++count_;
  if (count_ <= kMaxShownErrors)
    text_ += (text_.empty() ? "" : "\n") + std::string(error.what());
}

void RecordErrors::throw_if_any() const {
  if (count_ > kMaxShownErrors)
    throw DataError(text_ + "\nand " + std::to_string(count_ - kMaxShownErrors) +
                    " more records with errors.");
  if (count_ > 0)
    throw DataError(text_);
}

std::string Row::key(std::string_view word) const {
  for (const auto& [ours, theirs] : file_.columns) {
    if (ours == word)
      return theirs;
  }
  return std::string(word);
}

const io::Json* Row::find(std::string_view word) const {
  const io::Json* value = object_.find(key(word));
  return value != nullptr && !value->is_null() ? value : nullptr;
}

void Row::fail(const std::string& key, const std::string& expected, const std::string& found,
               const std::string& advice) const {
  throw DataError(place(file_, line_) + ": " + key + ": expected " + expected + ", found " + found +
                  ". " + advice);
}

const std::string& Row::text(std::string_view word) const {
  const io::Json* value = find(word);
  if (value == nullptr) {
    std::string keys;
    for (const auto& [name, unused] : object_.as_object())
      keys += (keys.empty() ? "" : ", ") + name.substr(0, 40);
    fail(key(word), "a string", "no such key (keys: " + keys.substr(0, 200) + ")",
         "Name the file's keys under 'columns'.");
  }
  if (!value->is_string())
    fail(key(word), "a string", std::string(value->type_name()), "Write the value as text.");
  return value->as_string();
}

std::vector<Message> Row::messages(std::string_view word, const MessageNames& names) const {
  const std::string name = key(word);
  const std::string role_key = key(names.role);
  const std::string content_key = key(names.content);
  const std::string advice =
      "Write [{\"" + role_key + "\": \"user\", \"" + content_key + "\": \"...\"}, ...].";
  const io::Json* list = find(word);
  if (list == nullptr || !list->is_array() || list->as_array().empty())
    fail(name, "a list of messages",
         list == nullptr    ? "no such key"
         : list->is_array() ? "an empty list"
                            : std::string(list->type_name()),
         advice);
  std::vector<Message> messages;
  for (const io::Json& entry : list->as_array()) {
    const std::string path = name + "[" + std::to_string(messages.size()) + "]";
    const auto member = [&](const std::string& member_name) -> const std::string& {
      const io::Json* value = entry.find(member_name);
      if (value == nullptr || !value->is_string())
        fail(path + "." + member_name, "a string",
             value == nullptr ? "no such key" : std::string(value->type_name()), advice);
      return value->as_string();
    };
    const std::string& role = member(role_key);
    Message message{role_of(role), ""};
    if (message.role.empty())
      fail(path + "." + role_key, "system, user, assistant or tool", "'" + role.substr(0, 80) + "'",
           "Rename the role.");
    add_tools(entry, message, place(file_, line_) + ": " + path);
    const io::Json* content = entry.find(content_key);
    if (message.tool_calls.empty() || (content != nullptr && !content->is_null()))
      message.content = member(content_key);
    if (message.role == "assistant" && message.content.empty() && message.tool_calls.empty())
      fail(path + "." + content_key, "an answer", "an empty string",
           "Remove the record or fill it in.");
    messages.push_back(std::move(message));
  }
  return messages;
}

void Row::add_system(std::string_view list, std::vector<Message>& messages) const {
  std::string system = find("system") != nullptr ? text("system") : std::string();
  const bool has_message = messages.front().role == "system";
  if (!system.empty() && has_message)
    fail(key(list) + "[0]", "no message of the system beside '" + key("system") + "'", "one",
         "Put its text into '" + key("system") + "'.");
  if (has_message)
    system = messages.front().content;
  if (const io::Json* tools = find("tools"); tools != nullptr) {
    const std::string text = tools->is_string() ? tools->as_string() : tools->dump();
    if (!text.empty() && text != "[]")
      system += (system.empty() ? "" : "\n\n") + ("You can call these tools: " + text);
  }
  if (has_message)
    messages.front().content = std::move(system);
  else if (!system.empty())
    messages.insert(messages.begin(), {"system", std::move(system)});
}

void Row::require_answer(std::string_view word, const std::vector<Message>& messages) const {
  if (std::none_of(messages.begin(), messages.end(),
                   [](const Message& m) { return m.role == "assistant"; }))
    fail(key(word), "a message of the assistant", "none", "Add the answer.");
}

Record Row::record() const {
  Record record;
  record.file = file_.path;
  record.line = line_;
  return record;
}

void for_each_row(const DatasetFile& file, const std::string& text, int64_t limit,
                  const std::function<void(const Row&)>& use) {
  RecordErrors errors;
  const auto collect = [&](const Row& row) {
    try {
      use(row);
    } catch (const DataError& error) {
      errors.add(error);
    }
  };
  try {
    walk_rows(file, text, limit, collect);
  } catch (const DataError& error) {  // no record at all: nothing behind it is read
    errors.add(error);
  }
  errors.throw_if_any();
}

void check_columns(const DatasetFile& file, const std::vector<std::string>& words) {
  for (const auto& [ours, theirs] : file.columns) {
    if (std::find(words.begin(), words.end(), ours) == words.end())
      throw ConfigError(file.path + ": columns: unknown '" + ours + "'" +
                        known_names_hint(ours, words));
  }
}

}  // namespace shardtune::data
