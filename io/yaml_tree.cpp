// Reporting, overrides and writing of the YAML tree.
#include "io/yaml_tree.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace shardtune::io {

namespace {
constexpr size_t kMaxMessages = 30;
}

void ConfigErrors::throw_if_any() const {
  if (messages_.empty())
    return;
  std::string text;
  for (const std::string& message : messages_)
    text += (text.empty() ? "" : "\n") + message;
  throw ConfigError(text);
}

void YamlDocument::report(const std::string& message) {
  if (reported_.size() > kMaxMessages || !reported_.insert(message).second)
    return;
  errors_.add(reported_.size() <= kMaxMessages
                  ? message
                  : name_ + ": there are more errors. Mend these first.");
}

std::string YamlDocument::locate(const YamlTree* tree, int line, const std::string& path) const {
  if (tree != nullptr && !tree->origin.empty())
    return "--set " + tree->origin + (path == tree->origin || path.empty() ? "" : ": " + path);
  const std::string place = line > 0 ? name_ + ":" + std::to_string(line) : name_;
  return path.empty() ? place : place + ": " + path;
}

bool set_yaml_path(YamlDocument& document, std::string_view path, std::unique_ptr<YamlTree> value) {
  YamlTree* tree = document.root.get();
  const std::string origin = value->origin;
  while (true) {
    if (tree->is_absent())
      tree->kind = YamlTree::Kind::kMapping;
    if (tree->kind != YamlTree::Kind::kMapping)
      return false;
    const size_t dot = path.find('.');
    const std::string key(path.substr(0, dot));
    const auto [found, is_new] = tree->entry_of_key.emplace(key, tree->entries.size());
    if (is_new) {
      auto section = std::make_unique<YamlTree>();
      section->origin = origin;
      tree->entries.push_back({key, 0, std::move(section)});
    }
    std::unique_ptr<YamlTree>& slot = tree->entries[found->second].value;
    if (dot == std::string_view::npos) {
      document.replaced.push_back(std::exchange(slot, std::move(value)));
      return true;
    }
    path.remove_prefix(dot + 1);
    tree = slot.get();
  }
}

namespace {
bool is_plain_key(std::string_view key) {
  return !key.empty() && key.front() != '-' && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

std::string double_quoted(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      result += {'\\', c};
    else if (c == '\n')
      result += "\\n";
    else if (byte < 0x20 || byte == 0x7f)
      result += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15u]};
    else
      result += c;
  }
  return result + '"';
}

std::string scalar_text_of(const YamlTree& tree) {
  if (tree.kind == YamlTree::Kind::kEmpty)
    return "";
  if (tree.kind == YamlTree::Kind::kNull)
    return "null";
  // A plain scalar over several lines was folded: only quotes keep its line ends, a lone carriage
  // return as well, which yaml-cpp reads as text and then takes a colon before it for a key.
  const bool stays_plain = tree.text.find_first_of("\r\n") == std::string::npos;
  return tree.is_plain && stays_plain ? tree.text : double_quoted(tree.text);
}

class YamlWriter {
 public:
  std::string take() { return std::move(text_); }

  void node(const YamlTree& tree, size_t indent) {
    for (const YamlTree::Entry& entry : tree.entries) {
      line_start(indent);
      text_ += is_plain_key(entry.key) ? entry.key : double_quoted(entry.key);
      text_ += ':';
      value(*entry.value, indent);
    }
    for (const auto& item : tree.items) {
      line_start(indent);
      text_ += '-';
      value(*item, indent);
    }
  }

 private:
  void line_start(size_t indent) {
    // The first line of a collection inside a list stands right of its dash.
    if (!std::exchange(after_dash_, false))
      text_.append(indent, ' ');
  }

  void value(const YamlTree& tree, size_t indent) {
    const bool is_mapping = tree.kind == YamlTree::Kind::kMapping;
    if (is_mapping || tree.kind == YamlTree::Kind::kSequence) {
      if (tree.entries.empty() && tree.items.empty()) {
        text_ += is_mapping ? " {}\n" : " []\n";
        return;
      }
      after_dash_ = text_.ends_with('-');
      text_ += after_dash_ ? ' ' : '\n';
      node(tree, indent + 2);
      return;
    }
    const std::string scalar = scalar_text_of(tree);
    text_ += scalar.empty() ? "\n" : " " + scalar + "\n";
  }

  std::string text_;
  bool after_dash_ = false;
};
}  // namespace

std::string dump_yaml(const YamlTree& tree) {
  if (tree.kind != YamlTree::Kind::kMapping && tree.kind != YamlTree::Kind::kSequence)
    return scalar_text_of(tree) + "\n";
  if (tree.entries.empty() && tree.items.empty())
    return tree.kind == YamlTree::Kind::kMapping ? "{}\n" : "[]\n";
  YamlWriter writer;
  writer.node(tree, 0);
  return writer.take();
}

}  // namespace shardtune::io
