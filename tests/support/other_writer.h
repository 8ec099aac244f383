// A swap file as another program, or a failing device, would change it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "io/swap_file.h"

namespace shardtune::testing {

/// Counts of the full matrix, divided by SHARDTUNE_TEST_SCALE (20 in the suite, 1 in the long run).
inline int scaled(int full) {
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  const int divisor = scale == nullptr ? 20 : std::max(1, std::atoi(scale));
  return std::max(1, full / divisor);
}

/// The file again, past O_DIRECT.
class OtherWriter {
 public:
  explicit OtherWriter(const io::SwapFile& file)
      : fd_(::open(("/proc/self/fd/" + std::to_string(file.fd())).c_str(), O_RDWR | O_CLOEXEC)) {}
  ~OtherWriter() { ::close(fd_); }
  OtherWriter(const OtherWriter&) = delete;
  OtherWriter& operator=(const OtherWriter&) = delete;

  std::vector<std::byte> read(int64_t offset, int64_t count) const {
    std::vector<std::byte> bytes(static_cast<size_t>(count));
    EXPECT_EQ(::pread(fd_, bytes.data(), bytes.size(), offset), count);
    return bytes;
  }
  void write(int64_t offset, std::span<const std::byte> bytes) const {
    EXPECT_EQ(::pwrite(fd_, bytes.data(), bytes.size(), offset),
              static_cast<ssize_t>(bytes.size()));
  }
  void cut(int64_t size) const { EXPECT_EQ(::ftruncate(fd_, size), 0); }

 private:
  int fd_;
};

}  // namespace shardtune::testing
