#include "trainer/memory.h"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

namespace shardtune::trainer {
namespace {

std::optional<int64_t> read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value)
    return value;
  return std::nullopt;
}

// Of a line "KEY NUMBER kB".
std::optional<int64_t> bytes_of_line(const char* path, const char* key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string found;
    int64_t kilobytes = 0;
    if (words >> found >> kilobytes && found == key)
      return kilobytes * 1024;
  }
  return std::nullopt;
}

}  // namespace

int64_t peak_rss_bytes() {
  // getrusage would also count the process that started this one.
  if (const auto peak = bytes_of_line("/proc/self/status", "VmHWM:"))
    return *peak;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

int64_t resident_bytes() {
  malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident_pages = 0;
  if (!(file >> pages >> resident_pages))
    return peak_rss_bytes();
  return resident_pages * sysconf(_SC_PAGESIZE);
}

int64_t available_bytes() {
  int64_t available = bytes_of_line("/proc/meminfo", "MemAvailable:").value_or(-1);
  const auto limit = read_number("/sys/fs/cgroup/memory.max");  // "max" reads as no number
  const auto current = read_number("/sys/fs/cgroup/memory.current");
  if (limit && current) {
    const int64_t left = std::max<int64_t>(0, *limit - *current);
    available = available < 0 ? left : std::min(available, left);
  }
  return available;
}

}  // namespace shardtune::trainer
