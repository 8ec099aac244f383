#include "trainer/start_times.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>

namespace shardtune::trainer {
namespace {

/// Seconds since this process was made; 0 where the kernel does not tell.
double process_age() {
  std::ifstream uptime_file("/proc/uptime");
  double uptime = 0.0;
  std::ifstream stat_file("/proc/self/stat");
  std::string stat;
  if (!(uptime_file >> uptime) || !std::getline(stat_file, stat))
    return 0.0;
  // The name, in parentheses, may hold anything; starttime is the 20th field after it.
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string field;
  for (int i = 0; i < 20; ++i)
    fields >> field;
  const double ticks = std::strtod(field.c_str(), nullptr);
  return std::max(0.0, uptime - ticks / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

}  // namespace

StartTimes::StartTimes()
    : last_(std::chrono::steady_clock::now() -
            std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                std::chrono::duration<double>(process_age()))) {}

void StartTimes::end(const std::string& part) {
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - last_).count();
  last_ = now;
  seconds_ += seconds;
  char text[32];
  std::snprintf(text, sizeof text, " %.2f s", seconds);
  text_ += (text_.empty() ? "" : ", ") + part + text;
}

}  // namespace shardtune::trainer
