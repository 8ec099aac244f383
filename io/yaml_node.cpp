// Parsing: yaml-cpp reports events, a handler with caps builds our own tree. yaml-cpp's node API
// would keep the first of two equal keys, expand aliases and recurse as deep as the file says.
#include "io/yaml_node.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "io/text.h"
#include "io/yaml_tree.h"

namespace shardtune::io {

namespace {
constexpr size_t kMaxBytes = 1 << 20;
constexpr size_t kMaxDepth = 64;
constexpr int kMaxNodes = 100'000;
constexpr size_t kMaxKeyBytes = 256;

// Ends the parse after the message was reported.
struct ParseStopped : std::exception {};

class TreeHandler final : public YAML::EventHandler {
 public:
  TreeHandler(std::string_view text, YamlDocument& document, const std::string& origin)
      : text_(text), document_(document), origin_(origin) {}

  std::unique_ptr<YamlTree> take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (num_documents_++ > 0)
      stop(mark,
           "a second document starts here. Keep one document in the file, which begins with a "
           "key such as 'model:'");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (expects_key())
      stop(mark, "expected a key before ':', found none");
    const bool is_word = is_null_word(mark);
    const int key_line = stack_.empty() ? 0 : stack_.back().key_line;
    YamlTree* tree = place(mark, is_word ? YamlTree::Kind::kNull : YamlTree::Kind::kEmpty, anchor);
    if (!is_word && key_line > 0)
      tree->line = key_line;  // the mark of a missing value lies behind it
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    if (expects_key())
      stop(mark, "aliases (*name) are not read. Write the key out");
    report(mark, "aliases (*name) are not read. Write the value out");
    place(mark, YamlTree::Kind::kNull, 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check_tag(mark, tag);
    if (tag == "!")
      check_quote_closed(mark);
    check_escapes(mark, value);
    if (expects_key()) {
      add_key(mark, value);
      return;
    }
    YamlTree* tree = place(mark, YamlTree::Kind::kScalar, anchor);
    tree->text = value;
    tree->is_plain = tag == "?";
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlTree::Kind::kSequence);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlTree::Kind::kMapping);
  }
  void OnSequenceEnd() override { stack_.pop_back(); }
  void OnMapEnd() override { stack_.pop_back(); }

  void report(const YAML::Mark& mark, const std::string& what) {
    const int line = mark.is_null() ? 0 : mark.line + 1;
    const std::string path = origin_.empty() ? "" : origin_;
    YamlTree at;
    at.origin = origin_;
    document_.report(document_.locate(&at, line, path) + ": " + what + ".");
  }

 private:
  struct Frame {
    YamlTree* tree;
    std::unique_ptr<YamlTree>* value;  // of a mapping: where its next value goes, or nullptr
    int key_line = 0;                  // of a mapping: line of its last key
  };

  [[noreturn]] void stop(const YAML::Mark& mark, const std::string& what) {
    report(mark, what);
    throw ParseStopped();
  }

  bool expects_key() const {
    return !stack_.empty() && stack_.back().tree->kind == YamlTree::Kind::kMapping &&
           stack_.back().value == nullptr;
  }

  // Null words and missing values give the same event; the text at its mark tells them apart.
  bool is_null_word(const YAML::Mark& mark) const {
    if (mark.pos < 0 || static_cast<size_t>(mark.pos) >= text_.size())
      return false;
    const std::string_view rest = text_.substr(static_cast<size_t>(mark.pos));
    for (const std::string_view word : {"~", "null", "Null", "NULL"}) {
      if (rest.starts_with(word))
        return rest.size() == word.size() ||
               std::string_view(" \t\r\n,]}#").find(rest[word.size()]) != std::string_view::npos;
    }
    return false;
  }

  void check_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!")
      report(mark, "tags (" + quote_text(tag, 40) + ") are not read. Remove the tag");
  }

  // yaml-cpp 0.7 makes single bytes of two escapes, the only way to a value that is no UTF-8.
  void check_escapes(const YAML::Mark& mark, const std::string& value) {
    if (find_invalid_utf8(value))
      report(mark, R"(the escapes "\N" and "\_" are not read. Write "\x85" and "\xa0")");
  }

  // yaml-cpp accepts a quote that is still open at the end of the file.
  void check_quote_closed(const YAML::Mark& mark) {
    if (mark.pos < 0 || static_cast<size_t>(mark.pos) >= text_.size())
      return;
    const auto start = static_cast<size_t>(mark.pos);
    const char quote = text_[start];
    if (quote != '\'' && quote != '"')
      return;
    for (size_t i = start + 1; i < text_.size(); ++i) {
      const bool is_doubled = quote == '\'' && text_.substr(i, 2) == "''";
      if (is_doubled || (quote == '"' && text_[i] == '\\'))
        ++i;
      else if (text_[i] == quote)
        return;
    }
    stop(mark, "not valid YAML: the quote that opens here is not closed");
  }

  void add_key(const YAML::Mark& mark, const std::string& key) {
    Frame& frame = stack_.back();
    frame.key_line = mark.line + 1;
    YamlTree& mapping = *frame.tree;
    // A key of more than 1,024 characters is read where no colon follows, but cannot be written.
    if (key.size() > kMaxKeyBytes)
      stop(mark, "expected a key of at most " + std::to_string(kMaxKeyBytes) + " bytes, found " +
                     std::to_string(key.size()) + ". Write a colon behind every key");
    if (key == "<<")
      report(mark, "merge keys (<<) are not read. Write the keys out");
    const auto [known, is_new] = mapping.entry_of_key.emplace(key, mapping.entries.size());
    if (!is_new) {
      report(mark, "duplicate key " + quote_text(key) + ", first in line " +
                       std::to_string(mapping.entries[known->second].line) +
                       ". Keep one of the two");
      discarded_.push_back(std::make_unique<std::unique_ptr<YamlTree>>());
      frame.value = discarded_.back().get();
      return;
    }
    mapping.entries.push_back({key, mark.line + 1, nullptr});
    frame.value = &mapping.entries.back().value;
  }

  YamlTree* place(const YAML::Mark& mark, YamlTree::Kind kind, YAML::anchor_t anchor) {
    if (++num_nodes_ > kMaxNodes)
      stop(mark, "more than " + std::to_string(kMaxNodes) + " values");
    if (anchor != 0)
      report(mark, "anchors (&name) are not read. Remove the anchor");
    auto tree = std::make_unique<YamlTree>();
    tree->kind = kind;
    tree->line = mark.line + 1;
    tree->origin = origin_;
    YamlTree* placed = tree.get();
    if (stack_.empty()) {
      root_ = std::move(tree);
    } else if (stack_.back().tree->kind == YamlTree::Kind::kSequence) {
      stack_.back().tree->items.push_back(std::move(tree));
    } else {
      *std::exchange(stack_.back().value, nullptr) = std::move(tree);
    }
    return placed;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlTree::Kind kind) {
    check_tag(mark, tag);
    if (expects_key())
      stop(mark, "expected a plain key, found a list or mapping as key. Close every bracket");
    if (stack_.size() >= kMaxDepth)
      stop(mark, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    stack_.push_back({place(mark, kind, anchor), nullptr});
  }

  std::string_view text_;
  YamlDocument& document_;
  const std::string& origin_;
  std::unique_ptr<YamlTree> root_;
  std::vector<Frame> stack_;
  // Values of duplicate keys; boxed, because frames point at them while the list grows.
  std::vector<std::unique_ptr<std::unique_ptr<YamlTree>>> discarded_;
  int num_nodes_ = 0;
  int num_documents_ = 0;
};

// Cheap lower bounds of depth and node count: yaml-cpp's scanner reads ahead, so on bombs it would
// spend time and memory before the first event. Generous, because they also count inside quotes.
std::optional<std::pair<size_t, std::string>> find_bomb(std::string_view text) {
  constexpr int kMaxOpenBrackets = 512;
  int open = 0;
  int commas = 0;
  int colons = 0;
  int dashes = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool ends_word = i + 1 == text.size() || text[i + 1] == ' ' || text[i + 1] == '\n';
    if (c == '[' || c == '{')
      ++open;
    else if (c == ']' || c == '}')
      open = std::max(open - 1, 0);
    commas += c == ',' ? 1 : 0;
    colons += c == ':' && ends_word ? 1 : 0;
    dashes += c == '-' && ends_word ? 1 : 0;
    if (open > kMaxOpenBrackets)
      return {{i, "nested deeper than " + std::to_string(kMaxDepth) + " levels"}};
    if (std::max({commas, colons, dashes}) > kMaxNodes)
      return {{i, "more than " + std::to_string(kMaxNodes) + " values"}};
  }
  return std::nullopt;
}

// What must hold before yaml-cpp may see the text. It takes byte 4 for the end of the file.
std::optional<std::pair<size_t, std::string>> find_bad_text(std::string_view text) {
  if (text.size() > kMaxBytes)
    return {{0, "expected at most 1048576 bytes of YAML, found " + std::to_string(text.size())}};
  if (const auto bad = find_invalid_utf8(text))
    return {{static_cast<size_t>(*bad), "expected UTF-8 text, found the byte " +
                                            quote_text(text.substr(static_cast<size_t>(*bad), 1))}};
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7f)
      return {{i, "expected text, found the control character " + quote_text(text.substr(i, 1))}};
  }
  return find_bomb(text);
}
}  // namespace

bool starts_with_tab(std::string_view text, int line) {
  size_t begin = 0;
  for (int i = 0; i < line; ++i) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos)
      return false;
    begin = end + 1;
  }
  const size_t first = text.find_first_not_of(' ', begin);
  return first != std::string_view::npos && text[first] == '\t';
}

std::unique_ptr<YamlTree> parse_yaml_tree(std::string_view text, YamlDocument& document,
                                          const std::string& origin) {
  if (text.starts_with("\xef\xbb\xbf"))
    text.remove_prefix(3);
  TreeHandler handler(text, document, origin);
  if (const auto bad = find_bad_text(text)) {
    YAML::Mark mark;
    mark.line = static_cast<int>(std::count(text.begin(), text.begin() + bad->first, '\n'));
    handler.report(mark, bad->second);
    return nullptr;
  }
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(handler)) {
    }
  } catch (const ParseStopped&) {
    return nullptr;
  } catch (const YAML::Exception& error) {
    handler.report(error.mark, starts_with_tab(text, error.mark.line)
                                   ? std::string("found a tab at the start of the line, which YAML "
                                                 "does not take. Indent with spaces")
                                   : "not valid YAML: " + error.msg);
    return nullptr;
  }
  auto root = handler.take();
  if (root == nullptr || root->is_absent()) {
    root = std::make_unique<YamlTree>();
    root->kind = origin.empty() ? YamlTree::Kind::kMapping : YamlTree::Kind::kEmpty;
    root->origin = origin;
  }
  return root;
}

YamlNode YamlNode::parse(std::string_view text, const std::string& name, ConfigErrors& errors) {
  auto impl = std::make_shared<Impl>();
  impl->document = std::make_shared<YamlDocument>(name, errors);
  impl->document->root = parse_yaml_tree(text, *impl->document, "");
  impl->tree = impl->document->root.get();
  return YamlNode(std::move(impl));
}

YamlNode YamlNode::empty(const std::string& name, ConfigErrors& errors) {
  return parse("", name, errors);
}

void YamlNode::set_override(std::string_view assignment) {
  YamlDocument& document = *impl_->document;
  if (document.root == nullptr)
    return;  // the file could not be parsed, which was reported
  const size_t equals = assignment.find('=');
  const std::string_view path = assignment.substr(0, equals);
  const bool is_word = std::all_of(path.begin(), path.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
  const bool has_empty_part = path.empty() || path.front() == '.' || path.back() == '.' ||
                              path.find("..") != std::string_view::npos;
  const auto depth = static_cast<size_t>(std::count(path.begin(), path.end(), '.'));
  if (equals == std::string_view::npos || !is_word || has_empty_part || depth >= kMaxDepth) {
    document.report("--set " + quote_text(assignment) +
                    ": expected section.key=value. Write for example "
                    "'--set training.learning_rate=2e-4'.");
    return;
  }
  const std::string origin(path);
  auto value = parse_yaml_tree(assignment.substr(equals + 1), document, origin);
  if (value != nullptr && !set_yaml_path(document, path, std::move(value)))
    document.report("--set " + origin +
                    ": a part of this path is a value or a list in the file, not a section. "
                    "Override the whole of it.");
}

}  // namespace shardtune::io
