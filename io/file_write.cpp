// Writing side of file.h: every byte is on the disk when a function with "durably" returns.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/checked.h"
#include "core/error.h"
#include "io/file.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
constexpr const char* kAdvice =
    " Free space there or choose another output folder, check its permissions, and run again.";

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// Free bytes of the file system that holds `folder` or its nearest existing parent; -1 unknown.
int64_t free_bytes(fs::path folder) {
  struct statvfs info {};
  while (::statvfs(folder.c_str(), &info) != 0) {
    if (errno != ENOENT || folder == parent_of(folder))
      return -1;
    folder = parent_of(folder);
  }
  return try_mul(static_cast<int64_t>(info.f_bavail), static_cast<int64_t>(info.f_frsize))
      .value_or(INT64_MAX);
}

// What to do about errors that more space would not end; "" for all others.
std::string advice_without_space(int error) {
  switch (error) {
    case ENOENT:
      return " Make the folder that it is to lie in, or choose another output name.";
    case ENOTDIR:
      return " A part of the path is a file; choose another output name.";
    case EISDIR:
    case ENOTEMPTY:
    case EEXIST:
      return " The name is taken by a folder; choose another output name.";
    case EACCES:
    case EPERM:
    case EROFS:
      return " Choose a folder that this user may write to, or change its permissions.";
    case ENAMETOOLONG:
    case ELOOP:
      return " Choose another output name.";
    default:
      return "";
  }
}

[[noreturn]] void throw_write(const fs::path& path, const std::string& what, int error,
                              int64_t needed) {
  std::string message = path.string() + ": " + what + ": " + std::strerror(error);
  if (const std::string advice = advice_without_space(error); !advice.empty())
    throw WriteError(message + "." + advice);
  if (needed > 0)
    message += "; needed " + std::to_string(needed) + " bytes";
  if (const int64_t free = free_bytes(parent_of(path)); free >= 0)
    message += (needed > 0 ? ", " : "; ") + std::to_string(free) + " bytes free";
  throw WriteError(message + "." + kAdvice);
}

int open_retrying(const fs::path& path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags, 0666);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

int fsync_retrying(int fd) {
  int result = 0;
  do {
    result = ::fsync(fd);
  } while (result != 0 && errno == EINTR);
  return result;
}
}  // namespace

struct FileWriter::State {
  fs::path path;
  int fd = -1;
  int64_t written = 0;
  bool committed = false;
};

FileWriter::FileWriter(const fs::path& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  // A FIFO or device under the name must neither block the run nor be removed later.
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    throw WriteError(path.string() + ": expected a file or a free name, found " +
                     (S_ISDIR(info.st_mode) ? "a folder" : "a device or FIFO") +
                     ". Choose another output name.");
  state_->fd = open_retrying(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK);
  if (state_->fd < 0)
    throw_write(path, "cannot create the file", errno, 0);
}

FileWriter::~FileWriter() {
  if (state_->fd >= 0)
    ::close(state_->fd);
  if (!state_->committed)
    ::unlink(state_->path.c_str());
}

void FileWriter::write(std::span<const std::byte> bytes) {
  if (state_->fd < 0)
    throw ArgumentError(state_->path.string() + ": write after commit");
  // Linux moves at most 2 GiB per call; smaller calls also tell sooner that the disk is full.
  constexpr size_t kMaxPerCall = size_t{64} << 20;
  while (!bytes.empty()) {
    const ssize_t count = ::write(state_->fd, bytes.data(), std::min(bytes.size(), kMaxPerCall));
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0)
      throw_write(state_->path, "writing failed at byte " + std::to_string(state_->written),
                  count < 0 ? errno : ENOSPC, static_cast<int64_t>(bytes.size()));
    state_->written += count;
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void FileWriter::write(std::string_view text) { write(as_bytes(text)); }

int64_t FileWriter::bytes_written() const { return state_->written; }

void FileWriter::commit() {
  if (state_->fd < 0)
    throw ArgumentError(state_->path.string() + ": committed twice");
  if (fsync_retrying(state_->fd) != 0)
    throw_write(state_->path, "fsync failed", errno, state_->written);
  // After close() the descriptor is gone even when it reports an error.
  if (::close(std::exchange(state_->fd, -1)) != 0 && errno != EINTR)
    throw_write(state_->path, "closing failed", errno, state_->written);
  state_->committed = true;
}

void fsync_folder(const fs::path& folder) {
  const fs::path path = folder.empty() ? fs::path(".") : folder;
  const int fd = open_retrying(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    throw_write(path, "cannot open the folder", errno, 0);
  const int result = fsync_retrying(fd);
  const int error = errno;
  ::close(fd);
  // Some network file systems have no fsync of folders and say so with EINVAL.
  if (result != 0 && error != EINVAL)
    throw_write(path, "fsync of the folder failed", error, 0);
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw_write(to, "cannot rename " + from.string() + " to this name", errno, 0);
  fsync_folder(parent_of(to));
}

void write_file_durably(const fs::path& path, std::string_view text) {
  std::error_code error;
  if (fs::is_directory(path, error))
    throw_write(path, "cannot write the file", EISDIR, 0);
  fs::path partial = path;
  partial += ".partial";
  FileWriter writer(partial);
  writer.write(text);
  writer.commit();
  rename_durably(partial, path);
}

void create_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw_write(folder, "cannot create the folder", error.value(), 0);
  if (!fs::is_directory(folder, error))
    throw_write(folder, "cannot create the folder", ENOTDIR, 0);
}

void require_free_space(const fs::path& folder, int64_t bytes, std::string_view what) {
  const int64_t free = free_bytes(folder.empty() ? fs::path(".") : folder);
  if (free >= 0 && free < bytes)
    throw WriteError(folder.string() + ": " + std::string(what) + ": needed " +
                     std::to_string(bytes) + " bytes, " + std::to_string(free) + " bytes free." +
                     kAdvice);
}

}  // namespace shardtune::io
