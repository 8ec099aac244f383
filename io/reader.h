// The one bounded reader of binary files: a pointer and what remains. Every length is checked
// against the bytes left before anything is allocated; an overrun is a DataError that says where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"

namespace shardtune::io {

class BoundedReader {
 public:
  /// `name` is the file as the user knows it; it starts every message.
  BoundedReader(std::string name, std::span<const std::byte> bytes)
      : name_(std::move(name)), bytes_(bytes) {}

  int64_t offset() const { return offset_; }
  int64_t remaining() const { return static_cast<int64_t>(bytes_.size()) - offset_; }

  /// Little-endian value of an arithmetic type.
  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  /// The next `count` bytes.
  std::span<const std::byte> take(uint64_t count, std::string_view what);
  /// `count` bytes as text (not checked for UTF-8).
  std::string_view take_text(uint64_t count, std::string_view what);
  /// A u64 count of elements of at least `min_bytes_each` bytes still to come.
  int64_t read_count(uint64_t min_bytes_each, std::string_view what);

  /// DataError "name: byte offset: message".
  [[noreturn]] void fail(const std::string& message) const;

 private:
  std::string name_;
  std::span<const std::byte> bytes_;
  int64_t offset_ = 0;
};

}  // namespace shardtune::io
