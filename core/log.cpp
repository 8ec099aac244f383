#include "core/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <mutex>

#include "core/error.h"

namespace shardtune {

namespace {
struct LogState {
  std::mutex mutex;  // spdlog guards its sinks, not the list of them
  std::shared_ptr<spdlog::logger> logger;
  std::string prefix;
  LogLevel threshold = LogLevel::kInfo;

  LogState() {
    auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    logger = std::make_shared<spdlog::logger>("shardtune", std::move(sink));
    logger->set_pattern("%H:%M:%S %L %v");
    logger->set_level(spdlog::level::trace);
    logger->flush_on(spdlog::level::trace);
  }
};

LogState& state() {
  static LogState instance;
  return instance;
}
}  // namespace

void log_configure(int rank, int world_size, LogLevel level) {
  LogState& log = state();
  if (rank > 0)
    log.prefix = "[rank " + std::to_string(rank) + "/" + std::to_string(world_size) + "] ";
  log.threshold = (rank > 0 && level < LogLevel::kWarning) ? LogLevel::kWarning : level;
}

void log_to_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, false);
    sink->set_pattern("%Y-%m-%d %H:%M:%S %L %v");
    const std::lock_guard lock(state().mutex);
    state().logger->sinks().push_back(std::move(sink));
  } catch (const spdlog::spdlog_ex& error) {
    throw WriteError(path + ": cannot write the log: " + error.what() +
                     ". Check checkpoint.output_dir and its permissions.");
  }
}

void log_message(LogLevel level, std::string_view text) {
  LogState& log = state();
  if (level < log.threshold)
    return;
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                   spdlog::level::warn, spdlog::level::err};
  const std::lock_guard lock(log.mutex);
  log.logger->log(kLevels[static_cast<int>(level)], "{}{}", log.prefix, text);
}

}  // namespace shardtune
