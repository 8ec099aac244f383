// The program's log: plain lines on standard error and, once a run directory exists, train.log.
// Rank 0 prints; other ranks print only warnings and errors, prefixed "[rank i/n]". Ranks that are
// threads of one process share it.
#pragma once

#include <string>
#include <string_view>

namespace shardtune {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Call once at start; before it, messages go to standard error as of rank 0 of 1.
void log_configure(int rank, int world_size, LogLevel level);
/// Also write to this file (appending). WriteError when it cannot be opened.
void log_to_file(const std::string& path);

void log_message(LogLevel level, std::string_view text);
inline void log_debug(std::string_view text) { log_message(LogLevel::kDebug, text); }
inline void log_info(std::string_view text) { log_message(LogLevel::kInfo, text); }
inline void log_warning(std::string_view text) { log_message(LogLevel::kWarning, text); }
inline void log_error(std::string_view text) { log_message(LogLevel::kError, text); }

}  // namespace shardtune
