#include "trainer/progress.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "core/log.h"
#include "trainer/memory.h"

namespace shardtune::trainer {
namespace {

std::string time_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  char text[48];
  std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", static_cast<long long>(whole / 3600),
                static_cast<long long>(whole / 60 % 60), static_cast<long long>(whole % 60));
  return text;
}

}  // namespace

Progress::Progress(int64_t first_step, int64_t last_step)
    : is_terminal_(isatty(STDERR_FILENO) == 1),
      first_step_(first_step),
      last_step_(last_step),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::show(const ProgressPoint& point) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  const auto done = static_cast<double>(point.step - first_step_);
  const double left =
      done > 0 ? elapsed.count() / done * static_cast<double>(last_step_ - point.step) : 0.0;
  char text[192];
  std::snprintf(
      text, sizeof text,
      "step %lld/%lld  loss %.4f  lr %.3g  %.0f tokens/s  %.0f%% of limit  %.0f MiB  left %s",
      static_cast<long long>(point.step), static_cast<long long>(last_step_), point.loss,
      point.learning_rate, point.tokens_per_second, point.limit_fraction * 100.0,
      static_cast<double>(peak_rss_bytes()) / (1 << 20), time_text(left).c_str());
  if (!is_terminal_) {
    log_info(text);
    return;
  }
  // Carriage return, text, erase to the end of the line.
  std::fprintf(stderr, "\r%s\033[K", text);
  std::fflush(stderr);
  line_open_ = true;
}

void Progress::clear() {
  if (line_open_)
    std::fputs("\n", stderr);
  line_open_ = false;
}

}  // namespace shardtune::trainer
