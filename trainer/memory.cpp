#include "trainer/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "core/log.h"

namespace shardtune::trainer {
namespace {

std::optional<int64_t> read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value)
    return value;
  return std::nullopt;
}

int64_t available_in_meminfo() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    int64_t kilobytes = 0;
    if (words >> key >> kilobytes && key == "MemAvailable:")
      return kilobytes * 1024;
  }
  return -1;
}

std::string row(const char* name, int64_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "  %-12s %10.1f MiB", name,
                static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

int64_t available_bytes() {
  int64_t available = available_in_meminfo();
  const auto limit = read_number("/sys/fs/cgroup/memory.max");  // "max" reads as no number
  const auto current = read_number("/sys/fs/cgroup/memory.current");
  if (limit && current) {
    const int64_t left = std::max<int64_t>(0, *limit - *current);
    available = available < 0 ? left : std::min(available, left);
  }
  return available;
}

void log_memory_table(const Job& job, int64_t pool_bytes_before_probe) {
  const parallel::StoreMemory store = job.store->memory();
  const int64_t activations =
      std::max<int64_t>(0, BufferPool::process().peak_bytes_in_use() - pool_bytes_before_probe);
  log_info("memory of rank 0:");
  log_info(row("base", store.base_bytes));
  log_info(row("adapters", store.adapter_bytes));
  if (store.unit_bytes > 0)
    log_info(row("units", store.unit_bytes));
  log_info(row("gradients", store.gradient_bytes));
  log_info(row("optimizer", job.states->num_bytes()));
  log_info(row("activations", activations));
  if (const int64_t available = available_bytes(); available >= 0)
    log_info(row("free", available));
}

}  // namespace shardtune::trainer
