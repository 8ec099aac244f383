// YAML configuration read strictly: every value keeps file and line, every key must be asked for,
// and all problems are collected and told at once. Numbers are decimal ("2e-4" is one, "010" is
// refused); duplicate keys, aliases, tags and merge keys are errors. Caps: 1 MB, depth 64, 100,000
// nodes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::io {

/// Collects messages; throw_if_any() throws one ConfigError with all of them, a line each.
class ConfigErrors {
 public:
  void add(std::string message) { messages_.push_back(std::move(message)); }
  const std::vector<std::string>& messages() const { return messages_; }
  void throw_if_any() const;

 private:
  std::vector<std::string> messages_;
};

/// Bounds of a number, inclusive unless stated; the message prints them.
struct NumberRange {
  double min;
  double max;
  bool min_exclusive = false;
  bool max_exclusive = false;
};

/// A mapping, sequence or scalar of the file, or an absent section (then every getter returns its
/// default). Cheap to copy. Getters mark keys as known; finish() reports the rest as unknown.
class YamlNode {
 public:
  /// Parses text; problems of the syntax itself go to `errors` and an empty node comes back.
  static YamlNode parse(std::string_view text, const std::string& name, ConfigErrors& errors);
  /// An empty mapping called `name` (a section that the file does not have).
  static YamlNode empty(const std::string& name, ConfigErrors& errors);

  /// Overrides "section.key=value" (the value is YAML); creates sections as needed. The line of a
  /// message about it reads "--set section.key".
  void set_override(std::string_view assignment);

  bool present() const;
  bool is_mapping() const;
  bool is_sequence() const;
  bool is_scalar() const;
  std::string where() const;  // "file:14: adapter.lora_rank"

  /// Child of a mapping, absent node when missing. Marks the key as known.
  YamlNode section(std::string_view key) const;
  /// Elements of a sequence; a scalar or mapping counts as one element.
  std::vector<YamlNode> elements(std::string_view key) const;
  bool has(std::string_view key) const;
  /// Keys of a mapping in the order of the file; none of anything else.
  std::vector<std::string> keys() const;

  std::string string_or(std::string_view key, std::string_view otherwise) const;
  std::optional<std::string> string(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t otherwise, NumberRange range) const;
  std::optional<int64_t> integer(std::string_view key, NumberRange range) const;
  double number_or(std::string_view key, double otherwise, NumberRange range) const;
  std::optional<double> number(std::string_view key, NumberRange range) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  std::vector<std::string> strings_or(std::string_view key,
                                      std::vector<std::string> otherwise) const;
  std::vector<double> numbers_or(std::string_view key, std::vector<double> otherwise,
                                 NumberRange range) const;
  /// One of `choices`; the message lists them with the nearest one.
  std::string choice_or(std::string_view key, std::string_view otherwise,
                        const std::vector<std::string>& choices) const;

  /// Scalar text of this node itself (for elements of a sequence).
  std::string scalar_text() const;

  /// Adds an error at this node's line: "file:line: path: message".
  void error(std::string_view key, const std::string& message) const;
  /// Names keys of other tools: reading `theirs` says to write `ours` instead.
  void alias_hint(std::string_view theirs, std::string_view ours) const;
  /// Reports every key of this mapping that nobody asked for, with the nearest known one.
  void finish() const;

  /// The document with overrides, as YAML text in the order of the file.
  std::string dump() const;

 private:
  struct Impl;
  explicit YamlNode(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace shardtune::io
