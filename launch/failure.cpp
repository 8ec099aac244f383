#include "launch/failure.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

namespace shardtune::launch {
namespace {

int integer_of(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  if (text == nullptr)
    return otherwise;
  int number = otherwise;
  std::from_chars(text, text + std::strlen(text), number);
  return number;
}

void print_error(const std::string& tag, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "shardtune: error: %s%s\n", tag.c_str(), message.c_str());
  std::fflush(stderr);
}

}  // namespace

RankInfo rank_from_environment() {
  RankInfo info;
  info.rank = integer_of("OMPI_COMM_WORLD_RANK", 0);
  info.world_size = integer_of("OMPI_COMM_WORLD_SIZE", 1);
  info.local_rank = integer_of("OMPI_COMM_WORLD_LOCAL_RANK", 0);
  info.local_size = integer_of("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
  return info;
}

Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.exit_code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {ExitCode::kOutOfMemory,
            "out of memory. Use a smaller micro_batch_size or max_length, a quantised base, or "
            "gradient_checkpointing: true."};
  } catch (const std::exception& error) {
    return {ExitCode::kInternal,
            std::string("unexpected: ") + error.what() + ". This is a bug; please report it."};
  } catch (...) {
    return {ExitCode::kInternal, "unexpected exception. This is a bug; please report it."};
  }
}

void report(const Failure& failure, const RankInfo& ranks) {
  using std::chrono::milliseconds;
  if (ranks.rank > 0) {
    // A lost peer is most often the consequence of another rank's error, so it is told last.
    const int base = failure.code == ExitCode::kPeerLost ? 3000 : 1000;
    std::this_thread::sleep_for(milliseconds(base + 20 * ranks.rank));
  }
  std::string tag;
  if (ranks.world_size > 1)
    tag = "[rank " + std::to_string(ranks.rank) + "/" + std::to_string(ranks.world_size) + "] ";
  const bool has_tag = failure.message.starts_with("[rank ");
  print_error(has_tag ? "" : tag, failure.message);
}

void report_lost_peer(const std::string& message, const RankInfo& ranks) noexcept {
  for (const int number : {SIGTERM, SIGINT, SIGUSR1})
    std::signal(number, SIG_IGN);
  print_error("", message);
  leave_status(ranks, static_cast<int>(ExitCode::kPeerLost));
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
}

void leave_status(const RankInfo& ranks, int code) noexcept {
  const char* path = std::getenv("SHARDTUNE_STATUS_FILE");
  if (path == nullptr || *path == '\0')
    return;
  // launch/run makes the file; other hosts have none.
  const int file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file < 0)
    return;
  char line[64];
  const int length = std::snprintf(line, sizeof line, "%d %d\n", ranks.rank, code);
  // One write per line: lines of several ranks never mix. Its failure changes nothing here.
  [[maybe_unused]] const auto written = write(file, line, static_cast<size_t>(length));
  close(file);
}

}  // namespace shardtune::launch
