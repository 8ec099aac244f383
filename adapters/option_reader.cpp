#include "adapters/option_reader.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace shardtune::adapters {

namespace {

class YamlOptions : public OptionReader {
 public:
  YamlOptions(const io::YamlNode& section, std::map<std::string, std::string, std::less<>> names)
      : section_(section), names_(std::move(names)) {
    for (const auto& [theirs, ours] : names_)
      section_.alias_hint(theirs, ours);
  }

  Source source() const override { return Source::kRun; }
  bool has(std::string_view key) const override { return section_.has(ours(key)); }
  int64_t integer(std::string_view key, int64_t otherwise, io::NumberRange range) const override {
    return section_.integer_or(ours(key), otherwise, range);
  }
  double number(std::string_view key, double otherwise, io::NumberRange range) const override {
    return section_.number_or(ours(key), otherwise, range);
  }
  bool boolean(std::string_view key, bool otherwise) const override {
    return section_.boolean_or(ours(key), otherwise);
  }
  std::string text(std::string_view key, std::string_view otherwise) const override {
    return section_.string_or(ours(key), otherwise);
  }
  std::string choice(std::string_view key, std::string_view otherwise,
                     const std::vector<std::string>& choices) const override {
    return section_.choice_or(ours(key), otherwise, choices);
  }
  std::vector<std::string> texts(std::string_view key,
                                 std::vector<std::string> otherwise) const override {
    return section_.strings_or(ours(key), std::move(otherwise));
  }
  std::vector<int64_t> integers(std::string_view key) const override {
    std::vector<int64_t> values;
    for (const double value : section_.numbers_or(ours(key), {}, {0, 1e6})) {
      if (value != std::floor(value))
        error(key, "expected whole numbers.");
      values.push_back(static_cast<int64_t>(value));
    }
    return values;
  }
  Pattern pattern(std::string_view key, io::NumberRange range) const override {
    Pattern values;
    const io::YamlNode node = section_.section(ours(key));
    if (node.present() && !node.is_mapping()) {
      error(key, "expected a mapping. Write for example '{q_proj: 4}'.");
      return values;
    }
    for (const std::string& name : node.keys())
      values.emplace_back(name, node.number_or(name, range.max, range));
    return values;
  }
  Masks masks(std::string_view key) const override {
    error(key, "belongs to saved adapters. Leave it out.");
    return {};
  }
  bool is_text(std::string_view key) const override {
    return section_.section(ours(key)).is_scalar();
  }
  bool is_mapping(std::string_view key) const override {
    return section_.section(ours(key)).is_mapping();
  }
  std::unique_ptr<OptionReader> section(std::string_view key) const override {
    return read_yaml_options(section_.section(ours(key)));
  }
  void error(std::string_view key, const std::string& message) const override {
    section_.error(ours(key), message);
  }
  void finish() const override { section_.finish(); }

 private:
  std::string ours(std::string_view key) const {
    const auto found = names_.find(key);
    return found == names_.end() ? std::string(key) : found->second;
  }

  io::YamlNode section_;
  std::map<std::string, std::string, std::less<>> names_;
};

class PeftOptions : public OptionReader {
 public:
  PeftOptions(const io::Json& config, std::string name) : config_(config), name_(std::move(name)) {
    if (!config_.is_object())
      throw DataError(name_ + ": expected an object.");
    // What says nothing about the computation, and what only steers how PEFT itself works.
    for (const char* key : {"peft_type", "task_type", "base_model_name_or_path", "revision",
                            "inference_mode", "peft_version", "auto_mapping", "megatron_core",
                            "layers_pattern", "fan_in_fan_out", "loftq_config", "eva_config",
                            "qalora_group_size", "use_effective_conv2d", "init_weights"})
      known_.emplace(key);
  }

  Source source() const override { return Source::kSaved; }
  bool has(std::string_view key) const override { return find(key) != nullptr; }
  int64_t integer(std::string_view key, int64_t otherwise, io::NumberRange range) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return otherwise;
    if (!value->is_integer())
      wrong(key, "an integer", *value);
    check_range(key, static_cast<double>(value->as_integer()), range, "an integer");
    return value->as_integer();
  }
  double number(std::string_view key, double otherwise, io::NumberRange range) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return otherwise;
    if (!value->is_number())
      wrong(key, "a number", *value);
    check_range(key, value->as_number(), range, "a number");
    return value->as_number();
  }
  bool boolean(std::string_view key, bool otherwise) const override {
    const io::Json* value = find(key);
    if (value != nullptr && !value->is_bool())
      wrong(key, "true or false", *value);
    return value == nullptr ? otherwise : value->as_bool();
  }
  std::string text(std::string_view key, std::string_view otherwise) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return std::string(otherwise);
    if (value->is_bool())
      return value->as_bool() ? "true" : "false";
    if (!value->is_string())
      wrong(key, "a text", *value);
    return value->as_string();
  }
  std::string choice(std::string_view key, std::string_view otherwise,
                     const std::vector<std::string>& choices) const override {
    const std::string found = text(key, otherwise);
    if (std::ranges::find(choices, found) == choices.end())
      throw UnsupportedError(name_ + ": " + std::string(key) + " '" + found +
                             "' is not supported yet, see docs/status.md.");
    return found;
  }
  std::vector<std::string> texts(std::string_view key,
                                 std::vector<std::string> otherwise) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return otherwise;
    if (value->is_string())
      return {value->as_string()};
    if (!value->is_array())
      wrong(key, "a list or a text", *value);
    std::vector<std::string> result;
    for (const io::Json& item : value->as_array()) {
      if (!item.is_string())
        wrong(key, "texts", item);
      result.push_back(item.as_string());
    }
    return result;
  }
  std::vector<int64_t> integers(std::string_view key) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return {};
    if (value->is_integer())
      return {value->as_integer()};
    if (!value->is_array())
      wrong(key, "a list of integers", *value);
    std::vector<int64_t> result;
    for (const io::Json& item : value->as_array()) {
      if (!item.is_integer())
        wrong(key, "integers", item);
      result.push_back(item.as_integer());
    }
    return result;
  }
  Pattern pattern(std::string_view key, io::NumberRange range) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return {};
    if (!value->is_object())
      wrong(key, "an object", *value);
    Pattern result;
    for (const auto& [name, number] : value->as_object()) {
      if (!number.is_number())
        wrong(std::string(key) + "." + name, "a number", number);
      check_range(key, number.as_number(), range, "a number");
      result.emplace_back(name, number.as_number());
    }
    return result;
  }
  Masks masks(std::string_view key) const override {
    const io::Json* value = find(key);
    if (value == nullptr)
      return {};
    if (!value->is_object())
      wrong(key, "an object", *value);
    Masks result;
    for (const auto& [name, list] : value->as_object()) {
      const std::string place = std::string(key) + "." + name;
      if (!list.is_array())
        wrong(place, "a list of true and false", list);
      std::vector<uint8_t>& marks = result[name];
      for (const io::Json& mark : list.as_array()) {
        if (!mark.is_bool())
          wrong(place, "true and false", mark);
        marks.push_back(mark.as_bool() ? 1 : 0);
      }
    }
    return result;
  }
  bool is_text(std::string_view key) const override {
    const io::Json* value = find(key);
    return value != nullptr && value->is_string();
  }
  bool is_mapping(std::string_view key) const override {
    const io::Json* value = find(key);
    return value != nullptr && value->is_object();
  }
  std::unique_ptr<OptionReader> section(std::string_view key) const override {
    static const io::Json kNone = io::Json::object();
    const io::Json* value = find(key);
    return read_peft_options(value == nullptr ? kNone : *value, name_ + ": " + std::string(key));
  }
  void error(std::string_view key, const std::string& message) const override {
    throw DataError(name_ + ": " + std::string(key) + ": " + message);
  }
  void finish() const override {
    for (const auto& [key, value] : config_.as_object()) {
      if (!known_.contains(key) && has_effect(value))
        throw UnsupportedError(name_ + ": " + key + " is not supported yet, see docs/status.md.");
    }
  }

 private:
  static bool has_effect(const io::Json& value) {
    return !(value.is_null() || (value.is_bool() && !value.as_bool()) ||
             (value.is_object() && value.as_object().empty()) ||
             (value.is_array() && value.as_array().empty()) ||
             (value.is_number() && value.as_number() == 0.0) ||
             (value.is_string() && value.as_string() == "none"));
  }
  const io::Json* find(std::string_view key) const {
    known_.emplace(key);
    const io::Json* value = config_.find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  [[noreturn]] void wrong(std::string_view key, const std::string& expected,
                          const io::Json& found) const {
    throw DataError(name_ + ": " + std::string(key) + ": expected " + expected + ", found " +
                    std::string(found.type_name()) + ".");
  }
  void check_range(std::string_view key, double value, io::NumberRange range,
                   const std::string& what) const {
    const bool above = range.min_exclusive ? value > range.min : value >= range.min;
    const bool below = range.max_exclusive ? value < range.max : value <= range.max;
    if (!above || !below) {
      throw DataError(name_ + ": " + std::string(key) + ": expected " + what + " in " +
                      (range.min_exclusive ? "(" : "[") + io::Json(range.min).dump() + ", " +
                      io::Json(range.max).dump() + (range.max_exclusive ? ")" : "]") + ", found " +
                      number_json(value).dump() + ".");
    }
  }

  const io::Json& config_;
  std::string name_;
  mutable std::set<std::string, std::less<>> known_;
};

}  // namespace

std::unique_ptr<OptionReader> read_yaml_options(
    const io::YamlNode& section, std::map<std::string, std::string, std::less<>> names) {
  return std::make_unique<YamlOptions>(section, std::move(names));
}

std::unique_ptr<OptionReader> read_peft_options(const io::Json& config, const std::string& name) {
  return std::make_unique<PeftOptions>(config, name);
}

io::Json number_json(double value) {
  const bool is_whole = std::abs(value) < 1e15 && value == std::floor(value);
  return is_whole ? io::Json(static_cast<int64_t>(value)) : io::Json(value);
}

io::Json list_json(const std::vector<std::string>& texts) {
  io::Json list = io::Json::array();
  for (const std::string& text : texts)
    list.push_back(text);
  return list;
}

io::Json pattern_json(const Pattern& pattern) {
  io::Json object = io::Json::object();
  for (const auto& [name, value] : pattern)
    object.set(name, number_json(value));
  return object;
}

io::Json peft_config_json(std::string_view peft_type, const std::string& base_model,
                          std::vector<std::pair<std::string, io::Json>> own) {
  own.emplace_back("auto_mapping", nullptr);
  own.emplace_back("base_model_name_or_path", base_model);
  own.emplace_back("inference_mode", true);
  own.emplace_back("peft_type", peft_type);
  own.emplace_back("peft_version", "0.21.2");
  own.emplace_back("revision", nullptr);
  own.emplace_back("task_type", "CAUSAL_LM");
  std::ranges::sort(own, {}, &std::pair<std::string, io::Json>::first);
  io::Json config = io::Json::object();
  for (auto& [key, value] : own)
    config.set(key, std::move(value));
  return config;
}

}  // namespace shardtune::adapters
