// The parsed document behind YamlNode: what the parser builds, the getters read and dump writes.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "io/yaml_node.h"

namespace shardtune::io {

struct YamlTree {
  enum class Kind { kEmpty, kNull, kScalar, kMapping, kSequence };  // kEmpty: "key:" and no value

  struct Entry {
    std::string key;
    int line = 0;
    std::unique_ptr<YamlTree> value;
  };

  Kind kind = Kind::kEmpty;
  std::string text;            // scalar
  bool is_plain = true;        // scalar without quotes
  int line = 0;                // from 1; 0 = no line
  std::string origin;          // path of the override that made this node, or ""
  std::vector<Entry> entries;  // mapping, in the order of the file
  std::map<std::string, size_t, std::less<>> entry_of_key;  // mapping
  std::vector<std::unique_ptr<YamlTree>> items;             // sequence
  std::vector<std::string> known;                           // keys that were asked for
  std::map<std::string, std::string, std::less<>> aliases;  // another tool's key -> ours

  bool is_absent() const { return kind == Kind::kEmpty || kind == Kind::kNull; }
  YamlTree* find(std::string_view key) const {
    const auto found = entry_of_key.find(key);
    return found == entry_of_key.end() ? nullptr : entries[found->second].value.get();
  }
};

/// One file with its overrides. Reports each message once and stops after some dozens: a hostile
/// file must not make an endless report.
class YamlDocument {
 public:
  YamlDocument(std::string name, ConfigErrors& errors) : name_(std::move(name)), errors_(errors) {}

  const std::string& name() const { return name_; }
  void report(const std::string& message);
  /// "file:14" or "--set a.b", then ": " and the path unless it is empty or said already.
  std::string locate(const YamlTree* tree, int line, const std::string& path) const;

  std::unique_ptr<YamlTree> root;
  std::vector<std::unique_ptr<YamlTree>> replaced;  // nodes may still point into these

 private:
  std::string name_;
  ConfigErrors& errors_;
  std::set<std::string> reported_;
};

struct YamlNode::Impl {
  std::shared_ptr<YamlDocument> document;  // shared: nodes are copied freely and outlive the parse
  YamlTree* tree = nullptr;                // nullptr: absent
  std::string path;
};

/// Parses one document into `document`'s terms. nullptr after a syntax error, which is reported.
std::unique_ptr<YamlTree> parse_yaml_tree(std::string_view text, YamlDocument& document,
                                          const std::string& origin);

/// Sets a dotted path to a value; false when a part of it is a scalar or a list.
bool set_yaml_path(YamlDocument& document, std::string_view path, std::unique_ptr<YamlTree> value);

std::string dump_yaml(const YamlTree& tree);

/// The value of a strict decimal number: 16, -3, 2e-4, 0.5. Not 010, 0x10, 1_000, inf.
std::optional<double> parse_yaml_number(std::string_view text);
std::optional<int64_t> parse_yaml_integer(std::string_view text);
/// "expected" part of a message about a range: " >= 1", " from 1 to 64", " > 0 and < 1".
std::string range_text(const NumberRange& range);
bool in_range(double value, const NumberRange& range);
/// Shortest decimal text of a number, without exponent for whole numbers below 1e15.
std::string number_text(double value);
/// What to write instead of `text`, e.g. "1000" for "1_000"; "" when there is no good guess.
std::string suggest_number(std::string_view text);

}  // namespace shardtune::io
