// The manifest of a checkpoint folder: what each file must hold, byte for byte. It is the last file
// written, and it carries its own checksum, so a folder whose manifest verifies is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace shardtune::trainer {

namespace fs = std::filesystem;

inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr int64_t kManifestBlockBytes = 1 << 20;

struct ManifestFile {
  std::string name;
  int64_t size = 0;
  std::string sha256;
  std::vector<uint32_t> crc32c;  // of each block of kManifestBlockBytes; the last may be short
};

struct Manifest {
  int64_t step = 0;
  uint64_t seed = 0;
  std::string config_sha256;
  std::string base_sha256;
  std::vector<ManifestFile> files;
  std::string sha256;  // of what is above, as the file has it; filled by read_manifest()
};

/// Reads the manifest alone. Errors  as verify_folder()
Manifest read_manifest(const fs::path& folder);

/// DataError when a file of this size, or a block of this checksum, is not the expected one. The
/// number of checksums is the size's (read_manifest()).
void check_size(const fs::path& path, const ManifestFile& expected, int64_t size);
void check_block(const fs::path& path, const ManifestFile& expected, int64_t index, uint32_t crc);

/// Size and checksums of a file as it is on disk.
ManifestFile describe_file(const fs::path& folder, const std::string& name);

/// Writes and fsyncs manifest.json. WriteError as io::FileWriter.
void write_manifest(const fs::path& folder, const Manifest& manifest);

/// Reads the manifest and compares every file of the folder with it.
/// Errors  DataError naming file and block: missing, of another size, other bytes, a file that is
///         not listed, a manifest whose own checksum fails; UnsupportedError: a newer format;
///         MissingInputError: no folder, or no manifest in it
Manifest verify_folder(const fs::path& folder);

}  // namespace shardtune::trainer
