#include "io/reader.h"

namespace shardtune::io {

std::span<const std::byte> BoundedReader::take(uint64_t count, std::string_view what) {
  if (count > static_cast<uint64_t>(remaining()))
    fail(std::string(what) + ": expected " + std::to_string(count) + " bytes, found " +
         std::to_string(remaining()) +
         " to the end of the file. It is truncated or damaged; "
         "fetch it again.");
  const auto taken = bytes_.subspan(static_cast<size_t>(offset_), static_cast<size_t>(count));
  offset_ += static_cast<int64_t>(count);
  return taken;
}

std::string_view BoundedReader::take_text(uint64_t count, std::string_view what) {
  const auto taken = take(count, what);
  return {reinterpret_cast<const char*>(taken.data()), taken.size()};
}

int64_t BoundedReader::read_count(uint64_t min_bytes_each, std::string_view what) {
  const auto count = read<uint64_t>(what);
  const auto most = static_cast<uint64_t>(remaining()) / (min_bytes_each == 0 ? 1 : min_bytes_each);
  if (count > most) {
    offset_ -= static_cast<int64_t>(sizeof(count));
    fail(std::string(what) + ": expected at most " + std::to_string(most) + ", found " +
         std::to_string(count) + ". The file is truncated or damaged; fetch it again.");
  }
  return static_cast<int64_t>(count);
}

void BoundedReader::fail(const std::string& message) const {
  throw DataError(name_ + ": byte " + std::to_string(offset_) + ": " + message);
}

}  // namespace shardtune::io
