// Strict decimal numbers of YAML scalars, and the words about them in messages.
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "io/yaml_tree.h"

namespace shardtune::io {

namespace {
// Lengths of the parts of [-+]?(digits(.digits)?|.digits)([eE][-+]?digits)?, or nullopt.
struct NumberParts {
  std::string_view whole;  // digits before the point
  bool is_integer;         // no point, no exponent
};

std::string_view take_digits(std::string_view& text) {
  size_t n = 0;
  while (n < text.size() && text[n] >= '0' && text[n] <= '9')
    ++n;
  const std::string_view digits = text.substr(0, n);
  text.remove_prefix(n);
  return digits;
}

bool take_sign(std::string_view& text) {
  const bool is_sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  if (is_sign)
    text.remove_prefix(1);
  return is_sign;
}

std::optional<NumberParts> split_number(std::string_view text) {
  take_sign(text);
  NumberParts parts{take_digits(text), true};
  std::string_view fraction;
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    fraction = take_digits(text);
    parts.is_integer = false;
  }
  if (parts.whole.empty() && fraction.empty())
    return std::nullopt;
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    take_sign(text);
    if (take_digits(text).empty())
      return std::nullopt;
    parts.is_integer = false;
  }
  return text.empty() ? std::optional(parts) : std::nullopt;
}

bool has_leading_zero(const NumberParts& parts) {
  return parts.whole.size() > 1 && parts.whole[0] == '0';
}

template <typename T>
std::optional<T> convert(std::string_view text) {
  if (text.starts_with('+'))
    text.remove_prefix(1);
  T value{};
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size())
    return std::nullopt;
  return value;
}
}  // namespace

std::optional<double> parse_yaml_number(std::string_view text) {
  const auto parts = split_number(text);
  if (!parts || has_leading_zero(*parts))
    return std::nullopt;
  const auto value = convert<double>(text);
  return value && std::isfinite(*value) ? value : std::nullopt;
}

std::optional<int64_t> parse_yaml_integer(std::string_view text) {
  const auto parts = split_number(text);
  if (!parts || !parts->is_integer || has_leading_zero(*parts))
    return std::nullopt;
  return convert<int64_t>(text);
}

std::string number_text(double value) {
  if (std::abs(value) < 1e15 && value == std::trunc(value))
    return std::to_string(static_cast<int64_t>(value));
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  return std::string(buffer, end);
}

std::string range_text(const NumberRange& range) {
  // Bounds near the end of the types are no bounds to the user.
  const bool has_min = range.min > -9e18;
  const bool has_max = range.max < 9e18;
  if (has_min && has_max && !range.min_exclusive && !range.max_exclusive)
    return " from " + number_text(range.min) + " to " + number_text(range.max);
  std::string text;
  if (has_min)
    text += (range.min_exclusive ? " > " : " >= ") + number_text(range.min);
  if (has_max)
    text += std::string(has_min ? " and" : "") + (range.max_exclusive ? " < " : " <= ") +
            number_text(range.max);
  return text;
}

bool in_range(double value, const NumberRange& range) {
  const bool above = range.min_exclusive ? value > range.min : value >= range.min;
  const bool below = range.max_exclusive ? value < range.max : value <= range.max;
  return above && below;
}

std::string suggest_number(std::string_view text) {
  std::string digits;
  for (const char c : text.substr(0, 64)) {
    if (c != '_' && c != ',' && c != ' ' && c != '\'')
      digits += c;
  }
  std::string_view rest = digits;
  const bool is_negative = rest.starts_with('-');
  take_sign(rest);
  for (const auto& [prefix, base] : {std::pair{"0x", 16}, {"0X", 16}, {"0o", 8}, {"0b", 2}}) {
    if (!rest.starts_with(prefix))
      continue;
    int64_t value = 0;
    const auto result = std::from_chars(rest.data() + 2, rest.data() + rest.size(), value, base);
    const bool complete = result.ec == std::errc() && result.ptr == rest.data() + rest.size();
    return complete ? std::string(is_negative ? "-" : "") + std::to_string(value) : "";
  }
  const auto parts = split_number(digits);
  if (!parts)
    return "";
  if (has_leading_zero(*parts)) {
    while (rest.size() > 1 && rest[0] == '0' && rest[1] >= '0' && rest[1] <= '9')
      rest.remove_prefix(1);
    return std::string(is_negative ? "-" : "") + std::string(rest);
  }
  const auto value = convert<double>(digits);
  return value && std::isfinite(*value) ? number_text(*value) : "";
}

}  // namespace shardtune::io
