// A file of a checkpoint, read block by block: every block is compared with the manifest's checksum
// before a byte of it is used, also when the whole file was verified earlier. So a rank reads no
// more than the blocks it needs, and nothing that changed since, or that another host sees
// differently, is ever used.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io/file.h"
#include "trainer/manifest.h"

namespace shardtune::trainer {

class VerifiedFile {
 public:
  /// Blocks kept for what is read next to them: 8 MiB. Tensors of one layer lie beside each other
  /// but are asked for in another order.
  static constexpr size_t kNumKeptBlocks = 8;

  /// DataError: not of the manifest's size; MissingInputError: not there.
  VerifiedFile(const fs::path& path, ManifestFile expected);

  /// Copies bytes from `begin` on. DataError naming file and block: other bytes than the
  /// manifest's.
  void read(int64_t begin, std::span<std::byte> bytes);

  int64_t size() const { return expected_.size; }
  const fs::path& path() const { return file_.path(); }
  /// Of the file, so far; whole blocks.
  int64_t bytes_read() const { return bytes_read_; }

 private:
  struct Block {
    int64_t index = -1;
    int64_t last_use = 0;
    std::vector<std::byte> bytes;
  };
  const Block& block(int64_t index);

  io::MappedFile file_;
  ManifestFile expected_;
  std::vector<Block> kept_;
  int64_t num_uses_ = 0;
  int64_t bytes_read_ = 0;
};

}  // namespace shardtune::trainer
