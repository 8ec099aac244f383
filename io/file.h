// Files: mapped reading, whole reading under a cap, durable writing, checksums, and the one door
// for names that come from inside other files (DESIGN section 8.16).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::io {

namespace fs = std::filesystem;

/// A regular file mapped read-only. Keeps the file open and remembers size, inode and time of
/// change; check_unchanged() throws a DataError when another process changed the file since.
/// Errors  MissingInputError: not there, not readable, a directory, FIFO or device
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;

  std::span<const std::byte> bytes() const;
  const fs::path& path() const;
  /// Tells the kernel that these bytes are not needed again (MADV_DONTNEED).
  void drop(std::span<const std::byte> range) const noexcept;
  void check_unchanged() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The whole file as text. DataError above max_bytes; MissingInputError as MappedFile.
std::string read_text_file(const fs::path& path, int64_t max_bytes);

/// Joins a name found inside a file to the folder it belongs to. The name must be one path
/// component, not "." or "..", without NUL or separator; DataError otherwise.
/// `where` starts the message, e.g. "model.safetensors.index.json".
fs::path join_untrusted(const fs::path& folder, std::string_view name, std::string_view where);

/// Writes one file: opens it, takes bytes, and on commit() fsyncs it. Removed when destroyed
/// uncommitted. WriteError with path, bytes needed and bytes free on any failure.
class FileWriter {
 public:
  explicit FileWriter(const fs::path& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  int64_t bytes_written() const;
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes text to `path.partial`, fsyncs, renames over `path`, fsyncs the folder.
void write_file_durably(const fs::path& path, std::string_view text);
void fsync_folder(const fs::path& folder);
/// Renames and fsyncs the parent folder. WriteError on failure.
void rename_durably(const fs::path& from, const fs::path& to);
/// Creates a folder and its parents; WriteError naming the folder and the reason.
void create_folders(const fs::path& folder);
/// WriteError with needed and free bytes when the file system of `folder` has less free.
void require_free_space(const fs::path& folder, int64_t bytes, std::string_view what);

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t initial = 0);
/// Lower-case hex SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  void update(std::span<const std::byte> bytes);
  std::string hex_digest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string sha256_hex(std::span<const std::byte> bytes);

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace shardtune::io
