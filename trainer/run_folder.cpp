#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "core/error.h"
#include "io/file.h"
#include "io/json.h"
#include "trainer/checkpoint.h"
#include "trainer/collective.h"

namespace shardtune::trainer {
namespace {

constexpr const char* kLockFile = ".lock";
constexpr const char* kNonceFile = ".nonce";
constexpr const char* kMetricsFile = "metrics.jsonl";
constexpr int64_t kMaxMetricsBytes = 4ll << 30;

std::string reason() { return std::strerror(errno); }

std::string random_text() {
  std::random_device device;
  return std::to_string(device()) + "-" + std::to_string(device());
}

}  // namespace

std::string cut_metrics(std::string_view text, int64_t last_step) {
  std::string kept;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos)
      break;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    try {
      const io::Json json = io::parse_json(line, kMetricsFile);
      const io::Json* step = json.find("step");
      if (step != nullptr && step->is_integer() && step->as_integer() <= last_step)
        kept.append(line).append("\n");
    } catch (const DataError&) {
      // A line torn by a crash: the step it belongs to runs again.
    }
  }
  return kept;
}

RunFolder::RunFolder(parallel::Communicator& comm, const fs::path& folder) : path_(folder) {
  run_on_rank_zero(comm, [&] {
    io::create_folders(path_);
    lock();
    return std::string();
  });
  check_one_file_system(comm);
}

RunFolder::~RunFolder() {
  if (metrics_ >= 0)
    close(metrics_);
  if (lock_ >= 0)
    close(lock_);
}

void RunFolder::lock() {
  const fs::path file = path_ / kLockFile;
  lock_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) {
    throw WriteError(path_.string() + ": checkpoint.output_dir: cannot write: " + reason() +
                     ". Choose a folder that is writable.");
  }
  // The kernel drops the lock with the process, so a killed run leaves none behind.
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    throw WriteError(path_.string() +
                     ": checkpoint.output_dir: another run is writing here. Wait for it, or "
                     "choose another output_dir.");
  }
}

void RunFolder::check_one_file_system(parallel::Communicator& comm) {
  if (comm.world_size() == 1)
    return;
  const fs::path file = path_ / kNonceFile;
  const std::string nonce = run_on_rank_zero(comm, [&] {
    const std::string text = random_text();
    io::write_file_durably(file, text);
    return text;
  });
  std::string found;
  try {
    found = io::read_text_file(file, 1 << 10);
  } catch (const Error&) {
    found.clear();
  }
  const auto same = comm.all_gather_value<int>(found == nonce ? 1 : 0);
  run_on_rank_zero(comm, [&] {
    std::error_code error;
    fs::remove(file, error);
    return std::string();
  });
  for (size_t rank = 0; rank < same.size(); ++rank) {
    if (same[rank] == 0) {
      throw WriteError("[rank " + std::to_string(rank) + "/" + std::to_string(same.size()) + "] " +
                       path_.string() +
                       ": checkpoint.output_dir: this rank sees another folder than rank 0. Use a "
                       "path on a file system that all ranks share.");
    }
  }
}

fs::path RunFolder::set_aside_previous_run() {
  std::vector<fs::path> found;
  for (const auto& [step, folder] : list_checkpoints(path_))
    found.push_back(folder);
  for (const char* name :
       {kMetricsFile, "adapter", "resolved_config.yaml", "report.html", kEventsFolder}) {
    std::error_code error;
    if (fs::exists(path_ / name, error))
      found.push_back(path_ / name);
  }
  if (found.empty())
    return {};
  int number = 1;
  std::error_code error;
  while (fs::exists(path_ / ("previous-" + std::to_string(number)), error))
    ++number;
  const fs::path target = path_ / ("previous-" + std::to_string(number));
  io::create_folders(target);
  for (const fs::path& entry : found)
    io::rename_durably(entry, target / entry.filename());
  return target;
}

void RunFolder::open_metrics(int64_t last_step) {
  const fs::path file = path_ / kMetricsFile;
  std::error_code error;
  const std::string text =
      fs::exists(file, error) ? io::read_text_file(file, kMaxMetricsBytes) : std::string();
  io::write_file_durably(file, cut_metrics(text, last_step));
  metrics_ = open(file.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (metrics_ < 0)
    throw WriteError(file.string() + ": cannot write: " + reason() + ".");
}

void RunFolder::append_metrics(const std::string& line) {
  const std::string text = line + "\n";
  const off_t before = lseek(metrics_, 0, SEEK_END);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(metrics_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) {
      const std::string why = reason();
      // Half a line would spoil the next one; if even this fails, cut_metrics() drops the line.
      [[maybe_unused]] const int ignored = ftruncate(metrics_, before);
      throw WriteError((path_ / kMetricsFile).string() + ": cannot write: " + why + ".");
    }
    done += static_cast<size_t>(count);
  }
}

void RunFolder::sync_metrics() {
  if (metrics_ >= 0 && fsync(metrics_) != 0)
    throw WriteError((path_ / kMetricsFile).string() + ": cannot write: " + reason() + ".");
}

}  // namespace shardtune::trainer
