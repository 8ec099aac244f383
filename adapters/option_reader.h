// A method's options, read from either of the two places in which they stand, under PEFT's names:
// the `adapter:` section of a run, or an adapter_config.json. So each method reads them once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/json.h"
#include "io/yaml_node.h"

namespace shardtune::adapters {

/// "q_proj" -> 4: a value for the modules whose path a regular expression matches.
using Pattern = std::vector<std::pair<std::string, double>>;
/// Marks 0 or 1 by name.
using Masks = std::map<std::string, std::vector<uint8_t>>;

class OptionReader {
 public:
  virtual ~OptionReader() = default;

  /// Whether the options are those of a new training, or of a saved adapter.
  enum class Source { kRun, kSaved };
  virtual Source source() const = 0;

  virtual bool has(std::string_view key) const = 0;
  virtual int64_t integer(std::string_view key, int64_t otherwise, io::NumberRange range) const = 0;
  virtual double number(std::string_view key, double otherwise, io::NumberRange range) const = 0;
  virtual bool boolean(std::string_view key, bool otherwise) const = 0;
  virtual std::string text(std::string_view key, std::string_view otherwise) const = 0;
  virtual std::string choice(std::string_view key, std::string_view otherwise,
                             const std::vector<std::string>& choices) const = 0;
  /// A list; one text counts as a list of one.
  virtual std::vector<std::string> texts(std::string_view key,
                                         std::vector<std::string> otherwise) const = 0;
  virtual std::vector<int64_t> integers(std::string_view key) const = 0;
  virtual Pattern pattern(std::string_view key, io::NumberRange range) const = 0;
  /// Lists of true and false by name, of a saved adapter alone.
  virtual Masks masks(std::string_view key) const = 0;
  /// Whether the key holds one text, not a list.
  virtual bool is_text(std::string_view key) const = 0;
  /// What the key holds by name, to be finished on its own; empty where it is absent.
  virtual std::unique_ptr<OptionReader> section(std::string_view key) const = 0;
  /// Whether the key holds values by name.
  virtual bool is_mapping(std::string_view key) const = 0;

  /// A problem of a key: collected in a run's section, a DataError in a saved adapter.
  virtual void error(std::string_view key, const std::string& message) const = 0;
  /// Errors  UnsupportedError (saved adapter): an option that nobody read and that has an effect
  virtual void finish() const = 0;
};

/// `names`: PEFT's key -> ours, where they differ.
std::unique_ptr<OptionReader> read_yaml_options(
    const io::YamlNode& section, std::map<std::string, std::string, std::less<>> names = {});
std::unique_ptr<OptionReader> read_peft_options(const io::Json& config, const std::string& name);

/// The members that every adapter_config.json has and the method's own, in order of name.
io::Json peft_config_json(std::string_view peft_type, const std::string& base_model,
                          std::vector<std::pair<std::string, io::Json>> own);
/// An integer where the number is one, as PEFT's users write them.
io::Json number_json(double value);
io::Json list_json(const std::vector<std::string>& texts);
io::Json pattern_json(const Pattern& pattern);

}  // namespace shardtune::adapters
