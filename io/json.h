// JSON values, read under caps and without recursion on input depth, and written. Objects keep the
// order of the file. Duplicate keys, invalid UTF-8, NaN and trailing text are errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"

namespace shardtune::io {

struct JsonLimits {
  int64_t max_bytes = 256ll << 20;
  int max_depth = 64;
  int64_t max_nodes = 20'000'000;
};

/// One JSON value. Integers that fit int64 stay integers; every other number is a double.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;  // null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(static_cast<int64_t>(value)) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(float value) : value_(static_cast<double>(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  // Out of line: GCC 12 sees uninitialised members of the variant where these are inlined.
  Json(const Json& other);
  Json(Json&& other) noexcept;
  Json& operator=(const Json& other);
  Json& operator=(Json&& other) noexcept;
  ~Json();
  static Json array() { return Json(Array{}); }
  static Json object() { return Json(Object{}); }

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // Typed access; ArgumentError when the value has another type (check first: files are hostile).
  bool as_bool() const;
  int64_t as_integer() const;
  double as_number() const;
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;
  Array& as_array();
  Object& as_object();

  /// Member of an object, or nullptr when absent or this is no object.
  const Json* find(std::string_view key) const;
  /// Sets or adds a member (this must be an object).
  void set(std::string key, Json value);
  void push_back(Json value) { as_array().push_back(std::move(value)); }

  /// "null", "boolean", "integer", "number", "string", "array", "object".
  std::string_view type_name() const;
  /// JSON text; indent < 0 is one line without spaces. Doubles print as the shortest text that
  /// reads back.
  std::string dump(int indent = -1) const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

/// Parses one document. DataError: "name: line L, column C: what".
Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits = {});
Json read_json_file(const std::string& path, const JsonLimits& limits = {});

/// Typed member of an object; DataError naming file and key when absent or of another type.
class JsonReader {
 public:
  JsonReader(const Json& object, std::string name);
  bool has(std::string_view key) const;  // present and not null
  int64_t integer(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t otherwise) const;
  double number(std::string_view key) const;
  double number_or(std::string_view key, double otherwise) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  std::string string(std::string_view key) const;
  std::string string_or(std::string_view key, std::string_view otherwise) const;
  const std::string& name() const { return name_; }
  const Json& object() const { return object_; }

 private:
  const Json& object_;
  std::string name_;
};

}  // namespace shardtune::io
