// The block store on a real file: round trips, every kind of wrong block (RELIABILITY R24), errors
// of the device, the full disk, and the fallback without io_uring or O_DIRECT.
#include "io/block_file.h"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "io/file.h"
#include "tests/io/block_bytes.h"
#include "tests/io/temp_folder.h"
#include "tests/support/failing_io.h"
#include "tests/support/other_writer.h"

namespace shardtune::io {
namespace {

using testing::FailingIo;
using testing::OtherWriter;
using testing::scaled;

constexpr int64_t kBlock = BlockFile::kBlockBytes;
constexpr int64_t kRequest = BlockFile::kRequestBytes;

SwapOptions options_for(const fs::path& folder, SwapMode mode = SwapMode::kAuto) {
  SwapOptions options;
  options.folder = folder;
  options.mode = mode;
  return options;
}

SwapOptions failing(const fs::path& folder, const FailingIo::Alter& alter) {
  SwapOptions options = options_for(folder);
  options.wrap = [alter](std::unique_ptr<AsyncIo> io) {
    return std::make_unique<FailingIo>(std::move(io), alter);
  };
  return options;
}

void write_all(BlockFile& store, std::span<std::byte> buffer) {
  store.wait(store.write(RegionId{0}, store.num_regions(), buffer));
}
void read_all(BlockFile& store, std::span<std::byte> buffer) {
  store.wait(store.read(RegionId{0}, store.num_regions(), buffer));
}

class BlockFileModes : public ::testing::TestWithParam<SwapMode> {};

TEST_P(BlockFileModes, OddSizesComeBackAloneAndTogether) {
  const TempFolder folder;
  SwapFile file(options_for(folder.path(), GetParam()));
  BlockFile store(file);
  const int64_t sizes[] = {1,          0,          4095,       4096,       4097,
                           kBlock - 1, kBlock,     kBlock + 1, 3 * kBlock, 3 * kBlock + 7,
                           5,          2 * kBlock, 12345678};
  for (const int64_t size : sizes)
    store.add_region("tensor of " + std::to_string(size), size);
  const auto out = store.add_buffer(store.num_bytes());
  const auto in = store.add_buffer(store.num_bytes());
  testing::fill_block_bytes(out, 1);
  write_all(store, out);
  read_all(store, in);
  EXPECT_TRUE(std::ranges::equal(in, out));

  for (int32_t i = 0; i < static_cast<int32_t>(std::size(sizes)); ++i) {
    const RegionId region{i};
    const auto offset = static_cast<size_t>(store.offset_in_extent(RegionId{0}, region));
    EXPECT_EQ(offset % kIoAlignment, 0u);
    testing::fill_block_bytes(out.subspan(offset, static_cast<size_t>(sizes[i])),
                              static_cast<uint64_t>(i) + 100);
    store.wait(store.write(region, 1, out.subspan(offset)));
    std::ranges::fill(in, std::byte{0xee});
    store.wait(store.read(region, 1, in));
    EXPECT_EQ(std::memcmp(in.data(), out.data() + offset, static_cast<size_t>(sizes[i])), 0) << i;
  }
}

// Checks that another thread begins, or nobody: wait() has all of them done, and finds what is
// wrong.
TEST_P(BlockFileModes, ChecksBegunElsewhereFindWrongBlocks) {
  const TempFolder folder;
  SwapFile file(options_for(folder.path(), GetParam()));
  BlockFile store(file);
  store.add_region("first", 3 * kRequest + 100);
  store.add_region("second", 2 * kRequest + 5000);
  const auto out = store.add_buffer(store.num_bytes());
  const auto in = store.add_buffer(store.num_bytes());
  testing::fill_block_bytes(out, 3);
  write_all(store, out);
  const auto begin_until_all_there = [&](const auto& use) {
    // 3 MiB and 100 bytes have 49 blocks, 2 MiB and 5,000 bytes 33.
    for (size_t num_blocks = 0; num_blocks < 49 + 33;) {
      for (const auto& check : store.begin_checks()) {
        num_blocks += check->num_blocks();
        use(check);
      }
      std::this_thread::yield();
    }
  };
  for (const bool elsewhere : {true, false}) {
    std::ranges::fill(in, std::byte{0xee});
    const IoTicket ticket = store.read(RegionId{0}, 2, in);
    std::vector<std::thread> threads;
    begin_until_all_there([&](const std::shared_ptr<BlockCheck>& check) {
      if (elsewhere)
        threads.emplace_back([check] { check->run(); });
    });
    EXPECT_TRUE(store.begin_checks().empty());  // each once
    store.wait(ticket);
    EXPECT_TRUE(std::ranges::equal(in, out));
    for (std::thread& thread : threads)
      thread.join();
  }
  const OtherWriter other(file);
  const int64_t at = 3 * kRequest + 4096 + kBlock + 9;
  std::vector<std::byte> byte = other.read(at, 1);
  byte[0] ^= std::byte{4};
  other.write(at, byte);
  const IoTicket ticket = store.read(RegionId{0}, 2, in);
  begin_until_all_there([](const std::shared_ptr<BlockCheck>& check) { check->run(); });
  try {
    store.wait(ticket);
    ADD_FAILURE() << "a wrong block was not found";
  } catch (const CorruptBlockError& error) {
    EXPECT_NE(std::string(error.what()).find("second, block 1"), std::string::npos) << error.what();
  }
}

TEST_P(BlockFileModes, SomeBlocksComeAloneAndChecked) {
  const TempFolder folder;
  SwapFile file(options_for(folder.path(), GetParam()));
  BlockFile store(file);
  store.add_region("first", 5000);
  const RegionId region = store.add_region("table", 40 * kBlock + 77);
  const auto out = store.add_buffer(store.num_bytes());
  const auto in = store.add_buffer(20 * kBlock);
  testing::fill_block_bytes(out, 5);
  write_all(store, out);
  const auto table = out.subspan(static_cast<size_t>(store.offset_in_extent(RegionId{0}, region)));
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>{0, 1}, {3, 18}, {39, 2}, {40, 1}}) {
    const int64_t bytes = store.blocks_bytes(region, first, count);
    EXPECT_EQ(bytes, first + count == 41 ? (count - 1) * kBlock + 4096 : count * kBlock);
    std::ranges::fill(in, std::byte{0xee});
    store.wait(store.read_blocks(region, first, count, in));
    const int64_t payload = std::min(bytes, 40 * kBlock + 77 - first * kBlock);
    EXPECT_EQ(std::memcmp(in.data(), table.data() + first * kBlock, static_cast<size_t>(payload)),
              0)
        << first;
  }
  EXPECT_THROW(store.read_blocks(region, 40, 2, in), ArgumentError);
  EXPECT_THROW(store.read_blocks(region, -1, 2, in), ArgumentError);
  // A bit of the last byte of block 20.
  const OtherWriter other(file);
  const int64_t at = 8192 + 21 * kBlock - 1;
  std::vector<std::byte> byte = other.read(at, 1);
  byte[0] ^= std::byte{4};
  other.write(at, byte);
  store.wait(store.read_blocks(region, 21, 3, in));
  EXPECT_HAS(
      message_of<CorruptBlockError>([&] { store.wait(store.read_blocks(region, 19, 2, in)); }),
      "table, block 20: ");
}

TEST_P(BlockFileModes, ManyTransfersUnderWayEndInAnyOrder) {
  const TempFolder folder;
  SwapFile file(options_for(folder.path(), GetParam()));
  BlockFile store(file);
  constexpr int kRegions = 60;  // with three requests each, more than the queue is deep
  constexpr int64_t kSize = 2 * kRequest + 4096;
  for (int i = 0; i < kRegions; ++i)
    store.add_region("tensor " + std::to_string(i), kSize);
  const auto out = store.add_buffer(store.num_bytes());
  const auto in = store.add_buffer(store.num_bytes());
  testing::fill_block_bytes(out, 7);
  std::vector<IoTicket> writes;
  std::vector<IoTicket> reads;
  for (int32_t i = 0; i < kRegions; ++i)
    writes.push_back(store.write(RegionId{i}, 1, out.subspan(static_cast<size_t>(i * kSize))));
  for (int i = kRegions - 1; i >= 0; --i)
    store.wait(writes[static_cast<size_t>(i)]);
  for (int32_t i = 0; i < kRegions; ++i)
    reads.push_back(store.read(RegionId{i}, 1, in.subspan(static_cast<size_t>(i * kSize))));
  for (int i = 0; i < kRegions; ++i)
    store.wait(reads[static_cast<size_t>(i * 7 % kRegions)]);
  EXPECT_TRUE(std::ranges::equal(in, out));
  EXPECT_THROW(store.wait(reads[0]), ArgumentError);
}

INSTANTIATE_TEST_SUITE_P(Modes, BlockFileModes,
                         ::testing::Values(SwapMode::kAuto, SwapMode::kBuffered));

TEST(SwapFile, LeavesNoNameAndSaysHowItReads) {
  const TempFolder folder;
  {
    SwapFile file(options_for(folder.path()));
    EXPECT_TRUE(fs::is_empty(folder.path()));
    EXPECT_HAS(file.path(), "shardtune-");
    EXPECT_HAS(file.path(), "-rank0");
    if (file.is_direct())
      EXPECT_HAS(file.description(), "O_DIRECT");
    else
      EXPECT_HAS(file.description(), "because");
  }
  SwapFile buffered(options_for(folder.path(), SwapMode::kBuffered));
  EXPECT_FALSE(buffered.is_direct());
  EXPECT_EQ(buffered.description(),
            "buffered pread and pwrite on a thread, because it was asked for");
  EXPECT_HAS(message_of<WriteError>([&] { SwapFile none(options_for(folder.path() / "no")); }),
             "nvme_path");
}

TEST(SwapFile, MeasuresBothWays) {
  const TempFolder folder;
  for (const SwapMode mode : {SwapMode::kAuto, SwapMode::kBuffered}) {
    SwapFile file(options_for(folder.path(), mode));
    const SwapSpeed speed = file.measure(5 * kBlock + 4096);
    EXPECT_GT(speed.write_bytes_per_second, 0.0);
    EXPECT_GT(speed.read_bytes_per_second, 0.0);
    EXPECT_EQ(file.reserved_bytes(), 5 * kBlock + 4096);
  }
}

/// Three regions, written twice; the second time is what must come back.
struct Written {
  explicit Written(const fs::path& folder) : file(options_for(folder)), store(file) {
    store.add_region("layer 0 codes", kBlock + 300);
    store.add_region("layer 0 absmax", 5000);
    store.add_region("layer 1 codes", 2 * kBlock);
    buffer = store.add_buffer(store.num_bytes());
    for (uint32_t generation = 1; generation <= 2; ++generation) {
      testing::fill_block_bytes(buffer, generation);
      write_all(store, buffer);
    }
  }
  SwapFile file;
  BlockFile store;
  std::span<std::byte> buffer;
};

struct Place {
  int64_t offset;
  int64_t size;
  const char* name;
};
constexpr Place kPlaces[] = {{0, kBlock, "layer 0 codes, block 0"},
                             {kBlock, 300, "layer 0 codes, block 1"},
                             {kBlock + 4096, 5000, "layer 0 absmax, block 0"},
                             {kBlock + 12288, kBlock, "layer 1 codes, block 0"},
                             {2 * kBlock + 12288, kBlock, "layer 1 codes, block 1"}};

/// Makes one block wrong on the disk and says what the message must hold.
std::string inject(const Written& written, int kind, std::mt19937& random, std::string& holds) {
  const OtherWriter other(written.file);
  const Place& place = kPlaces[random() % std::size(kPlaces)];
  std::vector<std::byte> bytes = other.read(place.offset, place.size);
  switch (kind) {
    case 0: {  // one bit
      bytes[random() % bytes.size()] ^= std::byte{1} << (random() % 8);
      holds = "bytes with checksum";
      break;
    }
    case 1: {
      std::ranges::fill(bytes, std::byte{0});
      holds = "zeros";
      break;
    }
    case 2: {  // the bytes of the generation before
      std::vector<std::byte> old(static_cast<size_t>(written.store.num_bytes()));
      testing::fill_block_bytes(old, 1);
      std::copy_n(old.begin() + place.offset, place.size, bytes.begin());
      holds = "the bytes of generation 1 (a write was lost)";
      break;
    }
    default: {  // the two whole blocks of layer 1 exchanged, or one put over layer 0's
      const Place& from = kPlaces[4];
      const Place& to = kPlaces[random() % 2 == 0 ? 0 : 3];
      if (random() % 2 == 0)
        other.write(from.offset, other.read(to.offset, kBlock));
      else
        other.write(to.offset, other.read(from.offset, kBlock));
      holds = "the bytes of layer";
      return "block ";
    }
  }
  other.write(place.offset, bytes);
  return place.name;
}

TEST(BlockFile, EveryWrongBlockIsFound) {
  const TempFolder folder;
  const int injections = scaled(10000);
  std::mt19937 random(20260101);
  int found = 0;
  for (int i = 0; i < injections; ++i) {
    Written written(folder.path());
    std::string holds;
    const std::string where = inject(written, i % 4, random, holds);
    const std::string message =
        message_of<CorruptBlockError>([&] { read_all(written.store, written.buffer); });
    EXPECT_HAS(message, where);
    EXPECT_HAS(message, holds);
    EXPECT_HAS(message, "expected generation 2");
    // What was found once is never given out.
    EXPECT_THROW(written.store.read(RegionId{1}, 1, written.buffer), Error);
    ++found;
    if (::testing::Test::HasFailure())
      break;
  }
  EXPECT_EQ(found, injections);
}

TEST(BlockFile, AnUnwrittenBlockIsNoBlock) {
  const TempFolder folder;
  SwapFile file(options_for(folder.path()));
  BlockFile store(file);
  store.add_region("m", 100);
  const auto buffer = store.add_buffer(store.num_bytes());
  EXPECT_HAS(message_of<CorruptBlockError>([&] { read_all(store, buffer); }), "never written");
}

TEST(BlockFile, ACutFileIsAMissingInput) {
  for (const int64_t size : {2 * kBlock, 2 * kBlock + 100}) {  // inside of a page too
    const TempFolder folder;
    Written written(folder.path());
    OtherWriter(written.file).cut(size);
    const std::string message =
        message_of<MissingInputError>([&] { read_all(written.store, written.buffer); });
    EXPECT_HAS(message, "layer 1 codes, block ");
    EXPECT_HAS(message, "the file ends");
  }
}

TEST(BlockFile, ErrorsOfTheDeviceNameTheBlock) {
  const TempFolder folder;
  for (const IoKind kind : {IoKind::kWrite, IoKind::kRead}) {
    for (const int error : {EIO, ENOSPC, ENODEV}) {
      SwapFile file(failing(folder.path(), [&](const IoRequest& request, int64_t count) {
        return request.kind == kind && request.offset >= kRequest ? -error : count;
      }));
      BlockFile store(file);
      store.add_region("exp_avg", kRequest + 1);
      const auto buffer = store.add_buffer(store.num_bytes());
      const auto body = [&] {
        write_all(store, buffer);
        read_all(store, buffer);
      };
      const std::string message = kind == IoKind::kWrite ? message_of<WriteError>(body)
                                                         : message_of<MissingInputError>(body);
      EXPECT_HAS(message, "-rank0: exp_avg, block 16");
      EXPECT_HAS(message, std::strerror(error));
      // The first block could be read, but the store gives nothing out any more.
      EXPECT_THROW(read_all(store, buffer), Error);
    }
  }
}

TEST(BlockFile, ShortAndInterruptedTransfersAreFinished) {
  const TempFolder folder;
  int calls = 0;
  SwapFile file(failing(folder.path(), [&](const IoRequest& request, int64_t count) -> int64_t {
    ++calls;
    if (calls % 3 == 0)
      return -EINTR;
    // As if only a part had been moved: it was all moved, and will be again.
    return calls % 3 == 1 && count > 8192 ? count / 2 : count;
  }));
  BlockFile store(file);
  store.add_region("a", 5 * kRequest + 11);
  const auto out = store.add_buffer(store.num_bytes());
  const auto in = store.add_buffer(store.num_bytes());
  testing::fill_block_bytes(out, 3);
  write_all(store, out);
  read_all(store, in);
  EXPECT_TRUE(std::ranges::equal(in, out));
  EXPECT_GT(calls, 12);
}

TEST(SwapFile, AFullDiskIsMetBeforeTheRun) {
  const TempFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=4m") != 0)
    GTEST_SKIP() << "a small file system cannot be mounted here: " << std::strerror(errno);
  std::string message;
  {
    SwapFile file(options_for(folder.path()));
    BlockFile store(file);
    store.add_region("fits", 3 * kRequest);
    message = message_of<WriteError>([&] { store.add_region("too much", 2 * kRequest); });
    // What is there stays usable.
    const auto buffer = store.add_buffer(3 * kRequest);
    write_all(store, buffer);
    read_all(store, buffer);
  }
  ::umount(folder.path().c_str());
  EXPECT_HAS(message, "needed 2097152 bytes");
  EXPECT_HAS(message, "bytes free");
}

}  // namespace
}  // namespace shardtune::io
