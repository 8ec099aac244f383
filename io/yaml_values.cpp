// The getters of YamlNode: look up, check, report, fall back to the default.
#include <algorithm>
#include <cctype>
#include <cmath>

#include "core/registry.h"
#include "io/text.h"
#include "io/yaml_node.h"
#include "io/yaml_tree.h"

namespace shardtune::io {

namespace {
std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

std::string describe(const YamlTree& tree) {
  switch (tree.kind) {
    case YamlTree::Kind::kEmpty:
      return "nothing";
    case YamlTree::Kind::kNull:
      return "null";
    case YamlTree::Kind::kMapping:
      return "a mapping";
    case YamlTree::Kind::kSequence:
      return "a list";
    default:
      break;
  }
  if (!tree.is_plain)
    return "the string " + quote_text(tree.text);
  return parse_yaml_number(tree.text) ? tree.text : quote_text(tree.text);
}

// A value with what is needed to talk about it.
struct Value {
  YamlDocument& document;
  const YamlTree& tree;
  std::string path;
  std::string key;  // last part of the path, for examples

  void expected(const std::string& what, const std::string& example) const {
    document.report(document.locate(&tree, tree.line, path) + ": expected " + what + ", found " +
                    describe(tree) + ". " + example);
  }
  std::string example(const std::string& text) const {
    return "Write for example '" + key + ": " + text + "'.";
  }
};

// A plain scalar that may hold a number; reports anything else.
bool check_plain(const Value& value, const std::string& what, const std::string& example) {
  if (value.tree.kind == YamlTree::Kind::kScalar && value.tree.is_plain)
    return true;
  const bool quoted_number =
      value.tree.kind == YamlTree::Kind::kScalar && parse_yaml_number(value.tree.text).has_value();
  value.expected(what, quoted_number ? "Remove the quotes." : example);
  return false;
}

std::string advice_for(const Value& value, const std::string& example) {
  const std::string& text = value.tree.text;
  const std::string better = suggest_number(text);
  if (better.empty() || better == text)
    return example;
  const size_t digit = text.find_first_not_of("+-");
  const bool octal = digit != std::string::npos && text[digit] == '0' &&
                     text.find_first_of("_,xXoObBeE. '") == std::string::npos;
  return std::string(octal ? "A leading zero means octal to some readers and decimal to others. "
                           : "") +
         "Write '" + value.key + ": " + better + "'.";
}

std::optional<int64_t> read_integer(const Value& value, const NumberRange& range,
                                    std::optional<int64_t> otherwise) {
  const std::string what = "an integer" + range_text(range);
  const double lowest = range.min > -9e18 ? std::ceil(range.min) : 0.0;
  double shown = otherwise ? static_cast<double>(*otherwise) : 16.0;
  if (!in_range(shown, range))
    shown = in_range(lowest, range) ? lowest : lowest + 1;
  const std::string example = value.example(number_text(shown));
  if (!check_plain(value, what, example))
    return std::nullopt;
  const auto number = parse_yaml_integer(value.tree.text);
  if (!number) {
    // A number that is none of 64 bits has no better spelling.
    const bool is_spelling = parse_yaml_integer(suggest_number(value.tree.text)).has_value();
    value.expected(what, is_spelling ? advice_for(value, example) : example);
    return std::nullopt;
  }
  if (!in_range(static_cast<double>(*number), range)) {
    value.expected(what, example);
    return std::nullopt;
  }
  return number;
}

std::optional<double> read_number(const Value& value, const NumberRange& range,
                                  std::optional<double> otherwise) {
  const std::string what = "a number" + range_text(range);
  double shown = otherwise.value_or(0.5);
  if (!in_range(shown, range))
    shown = range.min > -9e18 ? range.min + (range.min_exclusive ? 1.0 : 0.0) : 0.0;
  if (!in_range(shown, range))
    shown = (range.min + range.max) / 2;
  const std::string example = value.example(number_text(shown));
  if (!check_plain(value, what, example))
    return std::nullopt;
  const auto number = parse_yaml_number(value.tree.text);
  if (!number) {
    value.expected(what, advice_for(value, example));
    return std::nullopt;
  }
  if (!in_range(*number, range)) {
    value.expected(what, example);
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> read_text(const Value& value, std::string_view example) {
  if (value.tree.kind == YamlTree::Kind::kScalar)
    return value.tree.text;
  value.expected("text", value.example(example.empty() ? "name" : std::string(example)));
  return std::nullopt;
}

std::optional<bool> read_boolean(const Value& value, bool otherwise) {
  const std::string& text = value.tree.text;
  const bool is_scalar = value.tree.kind == YamlTree::Kind::kScalar;
  if (is_scalar && value.tree.is_plain && (text == "true" || text == "false"))
    return text == "true";
  std::string lower = is_scalar ? text.substr(0, 8) : "";
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  bool shown = otherwise;
  for (const char* word : {"true", "yes", "on", "1", "y"})
    shown = shown || lower == word;
  for (const char* word : {"false", "no", "off", "0", "n"})
    shown = shown && lower != word;
  value.expected("true or false", "Write '" + value.key + ": " + (shown ? "true" : "false") + "'.");
  return std::nullopt;
}

// Looks a key up, marks it as known, reports a node that has no keys at all.
YamlTree* look_up(YamlDocument& document, YamlTree* tree, const std::string& path,
                  std::string_view key) {
  if (tree == nullptr)
    return nullptr;
  if (std::find(tree->known.begin(), tree->known.end(), key) == tree->known.end())
    tree->known.emplace_back(key);
  if (tree->kind != YamlTree::Kind::kMapping && !tree->is_absent()) {
    if (tree->known.size() == 1)  // once, not for each key
      document.report(document.locate(tree, tree->line, path) +
                      ": expected a section with keys, found " + describe(*tree) +
                      ". Write for example '" + std::string(key) + ": value' under it.");
    return nullptr;
  }
  return tree->find(key);
}

// The value under a key, unless it is absent or null.
std::optional<Value> value_at(YamlDocument& document, YamlTree* tree, const std::string& path,
                              std::string_view key) {
  const YamlTree* found = look_up(document, tree, path, key);
  if (found == nullptr || found->kind == YamlTree::Kind::kNull)
    return std::nullopt;
  return Value{document, *found, join_path(path, key), std::string(key)};
}

// The elements of a list, or the value itself as the only one.
std::vector<Value> elements_of(const Value& value) {
  if (value.tree.kind != YamlTree::Kind::kSequence)
    return {value};
  std::vector<Value> elements;
  for (const auto& item : value.tree.items)
    elements.push_back({value.document, *item,
                        value.path + "[" + std::to_string(elements.size()) + "]", value.key});
  return elements;
}
}  // namespace

bool YamlNode::present() const { return impl_->tree != nullptr && !impl_->tree->is_absent(); }

bool YamlNode::is_mapping() const {
  return impl_->tree != nullptr && impl_->tree->kind == YamlTree::Kind::kMapping;
}

bool YamlNode::is_sequence() const {
  return impl_->tree != nullptr && impl_->tree->kind == YamlTree::Kind::kSequence;
}

bool YamlNode::is_scalar() const {
  return impl_->tree != nullptr && impl_->tree->kind == YamlTree::Kind::kScalar;
}

std::string YamlNode::where() const {
  return impl_->document->locate(impl_->tree, impl_->tree == nullptr ? 0 : impl_->tree->line,
                                 impl_->path);
}

YamlNode YamlNode::section(std::string_view key) const {
  auto child = std::make_shared<Impl>(*impl_);
  child->tree = look_up(*impl_->document, impl_->tree, impl_->path, key);
  child->path = join_path(impl_->path, key);
  return YamlNode(std::move(child));
}

std::vector<YamlNode> YamlNode::elements(std::string_view key) const {
  const YamlNode node = section(key);
  if (!node.present())
    return {};
  if (!node.is_sequence())
    return {node};
  std::vector<YamlNode> result;
  for (const auto& item : node.impl_->tree->items) {
    auto element = std::make_shared<Impl>(*node.impl_);
    element->tree = item.get();
    element->path += std::string("[") + std::to_string(result.size()) + "]";
    result.push_back(YamlNode(std::move(element)));
  }
  return result;
}

bool YamlNode::has(std::string_view key) const { return section(key).present(); }

std::vector<std::string> YamlNode::keys() const {
  std::vector<std::string> names;
  if (is_mapping()) {
    for (const YamlTree::Entry& entry : impl_->tree->entries)
      names.push_back(entry.key);
  }
  return names;
}

std::optional<std::string> YamlNode::string(std::string_view key) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_text(*value, "") : std::nullopt;
}

std::string YamlNode::string_or(std::string_view key, std::string_view otherwise) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  const auto text = value ? read_text(*value, otherwise) : std::nullopt;
  return text.value_or(std::string(otherwise));
}

std::optional<int64_t> YamlNode::integer(std::string_view key, NumberRange range) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_integer(*value, range, std::nullopt) : std::nullopt;
}

int64_t YamlNode::integer_or(std::string_view key, int64_t otherwise, NumberRange range) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_integer(*value, range, otherwise).value_or(otherwise) : otherwise;
}

std::optional<double> YamlNode::number(std::string_view key, NumberRange range) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_number(*value, range, std::nullopt) : std::nullopt;
}

double YamlNode::number_or(std::string_view key, double otherwise, NumberRange range) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_number(*value, range, otherwise).value_or(otherwise) : otherwise;
}

bool YamlNode::boolean_or(std::string_view key, bool otherwise) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  return value ? read_boolean(*value, otherwise).value_or(otherwise) : otherwise;
}

std::vector<std::string> YamlNode::strings_or(std::string_view key,
                                              std::vector<std::string> otherwise) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  if (!value)
    return otherwise;
  std::vector<std::string> result;
  for (const Value& element : elements_of(*value)) {
    if (const auto text = read_text(element, otherwise.empty() ? "name" : otherwise.front()))
      result.push_back(*text);
  }
  return result;
}

std::vector<double> YamlNode::numbers_or(std::string_view key, std::vector<double> otherwise,
                                         NumberRange range) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  if (!value)
    return otherwise;
  std::vector<double> result;
  for (const Value& element : elements_of(*value)) {
    if (const auto number = read_number(element, range, std::nullopt))
      result.push_back(*number);
  }
  return result;
}

std::string YamlNode::choice_or(std::string_view key, std::string_view otherwise,
                                const std::vector<std::string>& choices) const {
  const auto value = value_at(*impl_->document, impl_->tree, impl_->path, key);
  if (!value)
    return std::string(otherwise);
  const bool is_scalar = value->tree.kind == YamlTree::Kind::kScalar;
  if (is_scalar && std::find(choices.begin(), choices.end(), value->tree.text) != choices.end())
    return value->tree.text;
  std::string known;
  for (const std::string& choice : choices)
    known += (known.empty() ? "" : ", ") + choice;
  const std::string nearest = is_scalar ? nearest_name(value->tree.text, choices) : "";
  const std::string shown =
      !nearest.empty()
          ? nearest
          : (otherwise.empty() && !choices.empty() ? choices.front() : std::string(otherwise));
  value->expected("one of " + known, (nearest.empty() ? "" : "Did you mean '" + nearest + "'? ") +
                                         value->example(shown));
  return std::string(otherwise);
}

std::string YamlNode::scalar_text() const {
  if (impl_->tree == nullptr)
    return "";
  const Value value{*impl_->document, *impl_->tree, impl_->path, impl_->path};
  if (is_scalar())
    return impl_->tree->text;
  value.expected("text", "Write a plain value here.");
  return "";
}

void YamlNode::error(std::string_view key, const std::string& message) const {
  const YamlTree* at = impl_->tree;
  const std::string path = key.empty() ? impl_->path : join_path(impl_->path, key);
  if (at != nullptr && !key.empty()) {
    if (const YamlTree* child = at->find(key))
      at = child;
  }
  impl_->document->report(impl_->document->locate(at, at == nullptr ? 0 : at->line, path) + ": " +
                          message);
}

void YamlNode::alias_hint(std::string_view theirs, std::string_view ours) const {
  if (impl_->tree != nullptr)
    impl_->tree->aliases.insert_or_assign(std::string(theirs), std::string(ours));
}

void YamlNode::finish() const {
  const YamlTree* tree = impl_->tree;
  if (tree == nullptr || tree->is_absent())
    return;
  YamlDocument& document = *impl_->document;
  if (tree->kind != YamlTree::Kind::kMapping) {
    look_up(document, impl_->tree, impl_->path, "key");
    return;
  }
  const std::set<std::string_view> known(tree->known.begin(), tree->known.end());
  for (const YamlTree::Entry& entry : tree->entries) {
    if (known.contains(entry.key))
      continue;
    const auto alias = tree->aliases.find(entry.key);
    const std::string shown = quote_text(entry.key);
    const std::string message =
        ": unknown key '" + shown.substr(1, shown.size() - 2) + "'" +
        (alias == tree->aliases.end() ? known_names_hint(entry.key, tree->known)
                                      : ". Write '" + alias->second + "' instead.");
    document.report(document.locate(entry.value.get(), entry.line, impl_->path) + message);
  }
}

std::string YamlNode::dump() const { return impl_->tree == nullptr ? "" : dump_yaml(*impl_->tree); }

}  // namespace shardtune::io
