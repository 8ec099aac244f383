// tokenize: one JSON array of ids per input line, and the other way. Lines are taken in blocks,
// tokenised in parallel and written in order.
#include <charconv>
#include <functional>

#include "core/parallel_for.h"
#include "launch/command_line.h"
#include "launch/line_reader.h"
#include "launch/output.h"
#include "launch/prompts.h"
#include "launch/session.h"
#include "launch/verbs.h"

namespace shardtune::launch {
namespace {

constexpr size_t kBlockBytes = 4 << 20;
constexpr size_t kTaskBytes = 64 << 10;

void append_ids(std::string& out, const std::vector<int32_t>& ids) {
  out += '[';
  char digits[16];
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0)
      out += ", ";
    const auto end = std::to_chars(digits, digits + sizeof digits, ids[i]).ptr;
    out.append(digits, end);
  }
  out += ']';
}

/// The ids of a JSON array of integers.
std::vector<int32_t> parse_ids(std::string_view text, const std::string& where) {
  const io::Json json = io::parse_json(text, where);
  std::vector<int32_t> ids;
  const bool is_list = json.is_array();
  if (is_list) {
    for (const io::Json& entry : json.as_array()) {
      if (!entry.is_integer() || entry.as_integer() < 0 || entry.as_integer() > INT32_MAX)
        throw DataError(where + ": element " + std::to_string(ids.size()) +
                        ": expected a token id, found " + entry.dump() +
                        ". Write lines like [504, 3575].");
      ids.push_back(static_cast<int32_t>(entry.as_integer()));
    }
    return ids;
  }
  throw DataError(where + ": expected an array of ids, found " + std::string(json.type_name()) +
                  ". Write lines like [504, 3575].");
}

/// What becomes of one line: `out` gets its JSON (or plain text).
using LineWork =
    std::function<void(std::string_view line, const std::string& where, std::string& out)>;

/// How results stand on standard output.
enum class Layout { kLines, kDocument };

class Printer {
 public:
  Printer(Layout layout, const char* key) : layout_(layout) {
    if (layout_ == Layout::kDocument)
      print(std::string("{\"") + key + "\": [");
  }
  void add(std::string_view result) {
    if (layout_ == Layout::kLines) {
      text_ += result;
      text_ += '\n';
      return;
    }
    text_ += is_first_ ? "\n" : ",\n";
    text_ += result;
    is_first_ = false;
  }
  void flush() {
    print(text_);
    text_.clear();
  }
  void finish() {
    if (layout_ == Layout::kDocument)
      text_ += "\n]}\n";
    flush();
    flush_output();
  }

 private:
  Layout layout_;
  std::string text_;
  bool is_first_ = true;
};

/// Runs of lines of about kTaskBytes, so that short lines do not cost a task each.
std::vector<size_t> cut_tasks(const std::vector<std::string_view>& lines) {
  std::vector<size_t> begins = {0};
  size_t num_bytes = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    num_bytes += lines[i].size() + 16;
    if (num_bytes >= kTaskBytes) {
      begins.push_back(i + 1);
      num_bytes = 0;
    }
  }
  if (begins.back() != lines.size())
    begins.push_back(lines.size());
  return begins;
}

void process(LineReader& reader, const LineWork& work, Printer& printer) {
  int64_t first_line = 1;
  for (;;) {
    const auto lines = reader.next_block(kBlockBytes);
    if (lines.empty())
      return;
    const std::vector<size_t> begins = cut_tasks(lines);
    std::vector<std::string> results(lines.size());
    parallel_tasks(static_cast<int64_t>(begins.size()) - 1, [&](int64_t task) {
      const auto t = static_cast<size_t>(task);
      for (size_t i = begins[t]; i < begins[t + 1]; ++i) {
        const int64_t number = first_line + static_cast<int64_t>(i);
        work(lines[i], reader.name() + ":" + std::to_string(number), results[i]);
      }
    });
    for (const std::string& result : results)
      printer.add(result);
    printer.flush();
    first_line += static_cast<int64_t>(lines.size());
  }
}

void add_options(CommandLine& line) {
  line.value("model", "M", "folder of a Hugging Face model, or one .gguf file");
  line.value("text", "T", "one text (line ends belong to it)");
  line.value("file", "F", "a file, line by line; - is standard input (the default)");
  line.value("chat", "FILE.json", "messages, through the model's chat template");
  line.value("chat-template", "NAME", "auto (default) or a known name, for --chat");
  line.flag("no-special", "do not add the tokenizer's own first and last tokens");
  line.flag("decode", "the other way: arrays of ids to texts");
  line.flag("json", "print one JSON document");
  line.threads_option();
}

LineWork work_of(const CommandLine& line, const data::Tokenizer& tokenizer) {
  const bool is_json = line.has("json");
  if (line.has("decode"))
    return
        [&tokenizer, is_json](std::string_view text, const std::string& where, std::string& out) {
          out = tokenizer.decode(parse_ids(text, where), {});
          if (is_json)
            out = io::Json(out).dump();
        };
  data::EncodeOptions options;
  if (line.has("no-special"))
    options.ends = data::AddedEnds::kNone;
  return [&tokenizer, options](std::string_view text, const std::string&, std::string& out) {
    append_ids(out, tokenizer.encode(text, options));
  };
}

void tokenize_chat(const CommandLine& line, const data::Tokenizer& tokenizer, Printer& printer) {
  ModelArguments arguments;
  arguments.chat_template = line.text_or("chat-template", "auto");
  const auto chat = chat_template_for(arguments, tokenizer);
  if (chat == nullptr)
    throw ConfigError(
        "--chat-template: expected a template for --chat, found none. Name one, or take --text.");
  const std::string path = line.required("chat");
  const auto messages = messages_from_json(io::read_json_file(path), path);
  std::string text;
  append_ids(text, encode_turns(messages, tokenizer, *chat));
  printer.add(text);
}

void check_sources(const CommandLine& line) {
  int count = 0;
  for (const char* name : {"text", "file", "chat"})
    count += line.has(name) ? 1 : 0;
  if (count > 1)
    throw ConfigError(
        "shardtune tokenize: expected one of --text, --file and --chat, found several. Give one of "
        "them.");
  if (line.has("chat-template") && !line.has("chat"))
    throw ConfigError(
        "--chat-template: belongs to --chat FILE.json, found without it. Leave it out.");
  if (line.has("chat") && line.has("decode"))
    throw ConfigError("shardtune tokenize: --decode takes ids from --text or --file, not --chat.");
}

}  // namespace

int run_tokenize(Arguments arguments) {
  CommandLine line("tokenize --model M [--text T | --file F | --chat FILE.json] [--decode]",
                   "Prints one JSON array of token ids per input line. --chat appends the "
                   "generation prompt unless the last message is the assistant's.");
  add_options(line);
  if (!line.parse(arguments))
    return 0;
  const std::string model = line.required("model");
  check_sources(line);
  line.apply_threads();
  const auto tokenizer = data::load_tokenizer(model);
  const char* key = line.has("decode") ? "texts" : "ids";
  const Layout layout = line.has("json") ? Layout::kDocument : Layout::kLines;
  if (line.has("text") || line.has("chat")) {
    std::string result;
    if (line.has("text"))
      work_of(line, *tokenizer)(line.required("text"), "--text", result);
    Printer printer(layout, key);
    if (line.has("text"))
      printer.add(result);
    else
      tokenize_chat(line, *tokenizer, printer);
    printer.finish();
    return 0;
  }
  LineReader reader(line.text_or("file", "-"));
  Printer printer(layout, key);
  process(reader, work_of(line, *tokenizer), printer);
  printer.finish();
  return 0;
}

}  // namespace shardtune::launch
