#include "trainer/verified_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace shardtune::trainer {

VerifiedFile::VerifiedFile(const fs::path& path, ManifestFile expected)
    : file_(path), expected_(std::move(expected)) {
  check_size(path, expected_, static_cast<int64_t>(file_.bytes().size()));
}

void VerifiedFile::read(int64_t begin, std::span<std::byte> bytes) {
  SHARDTUNE_ASSERT(begin >= 0 && static_cast<int64_t>(bytes.size()) <= size() - begin);
  while (!bytes.empty()) {
    const std::vector<std::byte>& held = block(begin / kManifestBlockBytes).bytes;
    const auto offset = static_cast<size_t>(begin % kManifestBlockBytes);
    const size_t count = std::min(bytes.size(), held.size() - offset);
    std::memcpy(bytes.data(), held.data() + offset, count);
    bytes = bytes.subspan(count);
    begin += static_cast<int64_t>(count);
  }
}

const VerifiedFile::Block& VerifiedFile::block(int64_t index) {
  ++num_uses_;
  auto it = std::ranges::find(kept_, index, &Block::index);
  if (it == kept_.end()) {
    it = kept_.size() < kNumKeptBlocks ? kept_.insert(it, Block())
                                       : std::ranges::min_element(kept_, {}, &Block::last_use);
    it->index = -1;  // nothing, should the check below fail
    const auto begin = static_cast<size_t>(index * kManifestBlockBytes);
    const auto mapped = file_.bytes().subspan(
        begin, std::min<size_t>(kManifestBlockBytes, file_.bytes().size() - begin));
    // A copy: what is compared is what is used, whatever happens to the file.
    it->bytes.assign(mapped.begin(), mapped.end());
    file_.drop(mapped);
    bytes_read_ += static_cast<int64_t>(mapped.size());
    check_block(path(), expected_, index, io::crc32c(it->bytes));
    it->index = index;
  }
  it->last_use = num_uses_;
  return *it;
}

}  // namespace shardtune::trainer
