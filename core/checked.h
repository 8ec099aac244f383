// Checked arithmetic for sizes that come from files or from the user. Every product of such sizes
// goes through here; a wrap is an ArgumentError, or std::nullopt where the caller words the error.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/error.h"

namespace shardtune {

inline std::optional<int64_t> try_mul(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result))
    return std::nullopt;
  return result;
}

inline std::optional<int64_t> try_add(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result))
    return std::nullopt;
  return result;
}

inline int64_t checked_mul(int64_t a, int64_t b) {
  const auto result = try_mul(a, b);
  if (!result)
    throw ArgumentError("size overflow: " + std::to_string(a) + " x " + std::to_string(b));
  return *result;
}

inline int64_t checked_add(int64_t a, int64_t b) {
  const auto result = try_add(a, b);
  if (!result)
    throw ArgumentError("size overflow: " + std::to_string(a) + " + " + std::to_string(b));
  return *result;
}

/// Product of the extents; 1 for a scalar. nullopt when an extent is negative or the product wraps.
inline std::optional<int64_t> try_numel(std::span<const int64_t> shape) {
  int64_t total = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(total, extent, &total))
      return std::nullopt;
  }
  return total;
}

/// Value cast that throws when it would change the value.
template <typename To, typename From>
To narrow(From value) {
  const To result = static_cast<To>(value);
  if (static_cast<From>(result) != value || ((result < To{}) != (value < From{})))
    throw ArgumentError("size " + std::to_string(value) + " does not fit the target type");
  return result;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace shardtune
