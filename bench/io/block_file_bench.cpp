// Bytes per second of the block store on one file: writes and reads 1 GiB as offloaded parameters
// are, transfers of 16 MiB with three under way, every block checked; and what the checksums of the
// same bytes cost on one core. Prints one line of JSON. bench/io/run.py compares it with fio.
//   block_file_bench FOLDER [MiB]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "core/error.h"
#include "io/block_file.h"
#include "io/file.h"

namespace shardtune::io {
namespace {

constexpr int64_t kTransferBytes = 16 << 20;
constexpr size_t kBuffers = 3;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Seconds to move every region once.
double move_all(BlockFile& store, IoKind kind, const std::vector<std::span<std::byte>>& buffers) {
  const auto start = std::chrono::steady_clock::now();
  std::deque<IoTicket> under_way;
  for (int32_t r = 0; r < static_cast<int32_t>(store.num_regions()); ++r) {
    if (under_way.size() == buffers.size()) {
      store.wait(under_way.front());
      under_way.pop_front();
    }
    const auto buffer = buffers[static_cast<size_t>(r) % buffers.size()];
    under_way.push_back(kind == IoKind::kWrite ? store.write(RegionId{r}, 1, buffer)
                                               : store.read(RegionId{r}, 1, buffer));
  }
  for (const IoTicket ticket : under_way)
    store.wait(ticket);
  return seconds_since(start);
}

double checksum_seconds(std::span<const std::byte> bytes, int64_t total) {
  const auto start = std::chrono::steady_clock::now();
  uint32_t crc = 0;
  for (int64_t done = 0; done < total; done += kTransferBytes)
    crc ^= crc32c(bytes, crc);
  const double seconds = seconds_since(start);
  return crc == 1 ? seconds + 1e-9 : seconds;  // the sum is used
}

int run(const char* folder, int64_t mib) {
  SwapOptions options;
  options.folder = folder;
  SwapFile file(options);
  BlockFile store(file);
  const int64_t num_transfers = std::max<int64_t>(1, mib / (kTransferBytes >> 20));
  for (int64_t i = 0; i < num_transfers; ++i)
    store.add_region("transfer " + std::to_string(i), kTransferBytes);
  std::vector<std::span<std::byte>> buffers;
  for (size_t i = 0; i < kBuffers; ++i) {
    buffers.push_back(store.add_buffer(kTransferBytes));
    for (size_t b = 0; b < buffers.back().size(); ++b)
      buffers.back()[b] = static_cast<std::byte>((b + i) * 2654435761u >> 13);
  }
  // The first pass also makes the preallocated extents written ones, as fio's layout does.
  move_all(store, IoKind::kWrite, buffers);
  const double write = move_all(store, IoKind::kWrite, buffers);
  const double read = move_all(store, IoKind::kRead, buffers);
  const auto total = static_cast<double>(store.num_bytes());
  const double checksum = checksum_seconds(buffers[0], store.num_bytes());
  std::printf(
      "{\"io\": \"%s\", \"bytes\": %.0f, \"write_bytes_per_second\": %.6g, "
      "\"read_bytes_per_second\": %.6g, \"crc_bytes_per_second\": %.6g}\n",
      file.description().c_str(), total, total / write, total / read, total / checksum);
  return 0;
}

}  // namespace
}  // namespace shardtune::io

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: block_file_bench FOLDER [MiB]\n");
    return 64;
  }
  try {
    return shardtune::io::run(argv[1], argc > 2 ? std::atoll(argv[2]) : 1024);
  } catch (const shardtune::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
}
