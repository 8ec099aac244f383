// Reading side of file.h: mapped and whole files, and names found inside files.
#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_unreadable(const fs::path& path, const std::string& reason) {
  throw MissingInputError(path.string() + ": cannot read: " + reason +
                          ". Check the path and its permissions.");
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode))
    return "a folder";
  if (S_ISFIFO(mode))
    return "a FIFO";
  if (S_ISSOCK(mode))
    return "a socket";
  return "a device";
}

// Opens without blocking on a FIFO and refuses everything that is not a regular file.
int open_regular(const fs::path& path, struct stat& info) {
  if (path.native().find('\0') != std::string::npos)
    throw_unreadable(quote_text(path.native()), "the name holds a NUL byte");
  int fd = -1;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0)
    throw_unreadable(path, std::strerror(errno));
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw_unreadable(path, std::string("expected a file, found ") + kind_of(info.st_mode));
  }
  return fd;
}
}  // namespace

struct MappedFile::State {
  State(const fs::path& file_path) : path(file_path), fd(open_regular(file_path, info)) {
    size = static_cast<size_t>(info.st_size);
    if (size == 0)
      return;
    data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED)
      throw_unreadable(path, std::string("mapping failed: ") + std::strerror(errno));
  }
  ~State() {
    if (data != nullptr && data != MAP_FAILED)
      ::munmap(data, size);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  fs::path path;
  struct stat info {};
  Descriptor fd;
  void* data = nullptr;
  size_t size = 0;
};

MappedFile::MappedFile(const fs::path& path) : state_(std::make_unique<State>(path)) {}
MappedFile::~MappedFile() = default;
MappedFile::MappedFile(MappedFile&&) noexcept = default;
MappedFile& MappedFile::operator=(MappedFile&&) noexcept = default;

std::span<const std::byte> MappedFile::bytes() const {
  return {static_cast<const std::byte*>(state_->data), state_->size};
}

const fs::path& MappedFile::path() const { return state_->path; }

void MappedFile::drop(std::span<const std::byte> range) const noexcept {
  // Only whole pages: neighbours of the range stay.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + range.size()) / page * page;
  if (first < last)
    ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void MappedFile::check_unchanged() const {
  struct stat now {};
  struct stat by_name {};
  const struct stat& before = state_->info;
  const auto same = [&](const struct stat& other) {
    return other.st_ino == before.st_ino && other.st_dev == before.st_dev &&
           other.st_size == before.st_size && other.st_mtim.tv_sec == before.st_mtim.tv_sec &&
           other.st_mtim.tv_nsec == before.st_mtim.tv_nsec;
  };
  if (::fstat(state_->fd.get(), &now) != 0 || !same(now))
    throw DataError(state_->path.string() + ": expected the " + std::to_string(before.st_size) +
                    " bytes that were there at the start, found a file of " +
                    std::to_string(now.st_size) +
                    " bytes written since. Do not change input files during a run; start again.");
  // Relative paths may have lost their folder; only a different file under the name counts.
  if (::stat(state_->path.c_str(), &by_name) == 0 && !same(by_name))
    throw DataError(state_->path.string() +
                    ": another file took this name since the start. Do not replace input files "
                    "during a run; start again.");
}

std::string read_text_file(const fs::path& path, int64_t max_bytes) {
  struct stat info {};
  const Descriptor fd(open_regular(path, info));
  std::string text;
  const auto refuse = [&](int64_t size) {
    throw DataError(path.string() + ": expected at most " + std::to_string(max_bytes) +
                    " bytes, found " + std::to_string(size) + ". Check that it is the right file.");
  };
  if (info.st_size > max_bytes)
    refuse(info.st_size);
  text.resize(static_cast<size_t>(info.st_size));
  size_t filled = 0;
  while (true) {
    if (filled == text.size()) {
      if (static_cast<int64_t>(filled) > max_bytes)  // it grew while being read
        refuse(static_cast<int64_t>(filled));
      text.resize(filled + 4096);
    }
    const ssize_t count = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      throw_unreadable(path, std::strerror(errno));
    if (count == 0)
      break;
    filled += static_cast<size_t>(count);
  }
  if (static_cast<int64_t>(filled) > max_bytes)
    refuse(static_cast<int64_t>(filled));
  text.resize(filled);
  return text;
}

namespace {
// The folder whose files may be reached by links: the folder itself, or models--* of a Hugging
// Face cache, whose snapshots are symbolic links to its blobs.
fs::path trusted_root(const fs::path& folder) {
  const fs::path resolved = fs::weakly_canonical(folder);
  fs::path root;
  for (const fs::path& part : resolved) {
    root /= part;
    if (part.native().starts_with("models--"))
      return root;
  }
  return resolved;
}

bool is_beneath(const fs::path& path, const fs::path& root) {
  auto part = path.begin();
  for (const fs::path& expected : root) {
    if (part == path.end() || *part != expected)
      return false;
    ++part;
  }
  return true;
}
}  // namespace

fs::path join_untrusted(const fs::path& folder, std::string_view name, std::string_view where) {
  const auto refuse = [&](const std::string& reason) {
    throw DataError(std::string(where) +
                    ": expected the name of a file in the same folder, found " + quote_text(name) +
                    " (" + reason + "). Use the file as its author published it.");
  };
  if (name.empty() || name == "." || name == "..")
    refuse("not a file name");
  if (name.size() > 255)
    refuse("longer than 255 bytes");
  for (const char c : name) {
    if (c == '/' || c == '\\')
      refuse("it holds a path separator");
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      refuse("it holds a control character");
  }
  if (name.size() >= 2 && name[1] == ':')
    refuse("it starts with a drive letter");
  const fs::path base = folder.empty() ? fs::path(".") : folder;
  const fs::path joined = base / fs::path(std::string(name));
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(joined, error))) {
    const fs::path target = fs::weakly_canonical(joined, error);
    if (error || !is_beneath(target, trusted_root(base)))
      refuse("a symbolic link that leads out of the folder");
  }
  return joined;
}

}  // namespace shardtune::io
