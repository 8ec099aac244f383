#include "io/json.h"

#include <algorithm>

#include "io/file.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
[[noreturn]] void throw_type(std::string_view expected, const Json& value) {
  throw ArgumentError("JSON value: expected " + std::string(expected) + ", found " +
                      std::string(value.type_name()));
}
}  // namespace

Json::Json(const Json& other) = default;
Json::Json(Json&& other) noexcept = default;
Json& Json::operator=(const Json& other) = default;
Json& Json::operator=(Json&& other) noexcept = default;
Json::~Json() = default;

bool Json::as_bool() const {
  if (const auto* value = std::get_if<bool>(&value_))
    return *value;
  throw_type("boolean", *this);
}

int64_t Json::as_integer() const {
  if (const auto* value = std::get_if<int64_t>(&value_))
    return *value;
  throw_type("integer", *this);
}

double Json::as_number() const {
  if (const auto* value = std::get_if<double>(&value_))
    return *value;
  return static_cast<double>(as_integer());
}

const std::string& Json::as_string() const {
  if (const auto* value = std::get_if<std::string>(&value_))
    return *value;
  throw_type("string", *this);
}

const Json::Array& Json::as_array() const {
  if (const auto* value = std::get_if<Array>(&value_))
    return *value;
  throw_type("array", *this);
}

const Json::Object& Json::as_object() const {
  if (const auto* value = std::get_if<Object>(&value_))
    return *value;
  throw_type("object", *this);
}

Json::Array& Json::as_array() {
  return const_cast<Array&>(static_cast<const Json*>(this)->as_array());
}

Json::Object& Json::as_object() {
  return const_cast<Object&>(static_cast<const Json*>(this)->as_object());
}

const Json* Json::find(std::string_view key) const {
  const auto* object = std::get_if<Object>(&value_);
  if (object == nullptr)
    return nullptr;
  for (const Member& member : *object) {
    if (member.first == key)
      return &member.second;
  }
  return nullptr;
}

void Json::set(std::string key, Json value) {
  Object& object = as_object();
  for (Member& member : object) {
    if (member.first == key) {
      member.second = std::move(value);
      return;
    }
  }
  object.emplace_back(std::move(key), std::move(value));
}

std::string_view Json::type_name() const {
  constexpr std::string_view kNames[] = {"null",   "boolean", "integer", "number",
                                         "string", "array",   "object"};
  return kNames[value_.index()];
}

Json read_json_file(const std::string& path, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits.max_bytes), path, limits);
}

JsonReader::JsonReader(const Json& object, std::string name)
    : object_(object), name_(std::move(name)) {
  if (!object.is_object())
    throw DataError(name_ + ": expected a JSON object, found " + std::string(object.type_name()) +
                    ". Use the file as its author published it.");
}

namespace {
[[noreturn]] void throw_member(const JsonReader& reader, std::string_view key,
                               std::string_view expected) {
  const Json* value = reader.object().find(key);
  std::string found = "nothing";
  if (value != nullptr)
    found = value->is_null() ? "null" : std::string(value->type_name()) + " ";
  if (value != nullptr && !value->is_null() && !value->is_array() && !value->is_object())
    found += value->is_string() ? quote_text(value->as_string()) : value->dump();
  else if (found.back() == ' ')
    found.pop_back();
  throw DataError(reader.name() + ": " + std::string(key) + ": expected " + std::string(expected) +
                  ", found " + found + ". Use the file as its author published it.");
}

// The member, nullptr when absent or null.
const Json* member(const JsonReader& reader, std::string_view key) {
  const Json* value = reader.object().find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}
}  // namespace

bool JsonReader::has(std::string_view key) const { return member(*this, key) != nullptr; }

int64_t JsonReader::integer(std::string_view key) const {
  const Json* value = member(*this, key);
  if (value == nullptr || !value->is_integer())
    throw_member(*this, key, "an integer");
  return value->as_integer();
}

int64_t JsonReader::integer_or(std::string_view key, int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

double JsonReader::number(std::string_view key) const {
  const Json* value = member(*this, key);
  if (value == nullptr || !value->is_number())
    throw_member(*this, key, "a number");
  return value->as_number();
}

double JsonReader::number_or(std::string_view key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}

bool JsonReader::boolean_or(std::string_view key, bool otherwise) const {
  const Json* value = member(*this, key);
  if (value == nullptr)
    return otherwise;
  if (!value->is_bool())
    throw_member(*this, key, "true or false");
  return value->as_bool();
}

std::string JsonReader::string(std::string_view key) const {
  const Json* value = member(*this, key);
  if (value == nullptr || !value->is_string())
    throw_member(*this, key, "a string");
  return value->as_string();
}

std::string JsonReader::string_or(std::string_view key, std::string_view otherwise) const {
  return has(key) ? string(key) : std::string(otherwise);
}

}  // namespace shardtune::io
