// One frozen base per host: what every rank reads, that nobody can write to it, and what happens
// when its memory cannot be had.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>

#include "parallel/host_segment.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/file_size_limit.h"
#include "tests/parallel/frozen_units.h"

namespace shardtune::parallel {
namespace {

constexpr int kUnits = 3;
constexpr int64_t kRows = 50;
constexpr int64_t kColumns = 33;  // parts of a unit need gaps between them

class SharedUnits {
 public:
  explicit SharedUnits(Communicator& comm, ZeroStage stage = ZeroStage::k2)
      : store(comm, stage, {.sharing = BaseSharing::kPerHost}),
        frozen(store, kUnits, kRows, kColumns) {}

  void expect_values(int generation) {
    for (int u = 0; u < kUnits; ++u) {
      const UnitLease lease = store.acquire(frozen.units[static_cast<size_t>(u)], Pass::kForward);
      frozen.expect_values(u, generation);
    }
    frozen.expect_rows(generation);
  }

  ShardedParameterStore store;
  FrozenUnits frozen;
};

TEST(HostResidency, EveryRankOfEveryHostReadsWhatWasPublishedLast) {
  for (const int ranks : {1, 2, 4, 5}) {
    for (const int hosts : {1, 2, 3}) {
      if (hosts > ranks)
        continue;
      run_on_threads(
          ranks,
          [&](Communicator& comm) {
            SharedUnits shared(comm);
            shared.expect_values(0);
            for (int generation = 1; generation <= 3; ++generation) {
              shared.frozen.publish_tables(generation);
              shared.expect_values(generation);
            }
          },
          ThreadTransport::kBuffers, hosts);
    }
  }
}

TEST(HostResidency, RanksOfAHostReadTheSameMemoryAndOtherHostsOtherMemory) {
  constexpr int kRanks = 4;
  std::vector<uint64_t> inodes(kRanks);
  run_on_threads(
      kRanks,
      [&](Communicator& comm) {
        SharedUnits shared(comm);
        const UnitLease lease = shared.store.acquire(shared.frozen.units[0], Pass::kForward);
        const auto address =
            reinterpret_cast<uintptr_t>(shared.store.value(shared.frozen.tables[0]).raw());
        std::ifstream maps("/proc/self/maps");
        for (std::string line; std::getline(maps, line);) {
          std::istringstream words(line);
          uintptr_t begin = 0, end = 0;
          char dash = 0;
          std::string access, offset, device;
          uint64_t inode = 0;
          words >> std::hex >> begin >> dash >> end >> access >> offset >> device >> std::dec >>
              inode;
          if (begin <= address && address < end) {
            EXPECT_EQ(access, "r--s") << line;
            EXPECT_NE(line.find("/memfd:shardtune"), std::string::npos) << line;
            inodes[static_cast<size_t>(comm.rank())] = inode;
          }
        }
        comm.barrier();  // all memory is there at once
      },
      ThreadTransport::kBuffers, 2);
  EXPECT_NE(inodes[0], 0u);
  EXPECT_EQ(inodes[0], inodes[2]);
  EXPECT_EQ(inodes[1], inodes[3]);
  EXPECT_NE(inodes[0], inodes[1]);
}

TEST(HostResidency, AStrayWriteFaults) {
  const auto comm = make_single_communicator();
  SharedUnits shared(*comm);
  EXPECT_EXIT(
      {
        const UnitLease lease = shared.store.acquire(shared.frozen.units[0], Pass::kForward);
        std::signal(SIGSEGV, SIG_DFL);
        shared.store.value(shared.frozen.tables[0]).data<float>()[3] = 1.0f;
      },
      ::testing::KilledBySignal(SIGSEGV), "");
}

TEST(HostResidency, NobodyCanCutItShorter) {
  const auto comm = make_single_communicator();
  HostSegment segment(*comm);
  segment.grow("layer 0", 10000);
  // As another process would come by it.
  for (int descriptor = 3; descriptor < 256; ++descriptor) {
    char target[64] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
    if (readlink(link.c_str(), target, sizeof(target) - 1) > 0 &&
        std::string(target).rfind("/memfd:shardtune", 0) == 0) {
      EXPECT_EQ(ftruncate(descriptor, 0), -1);
      EXPECT_EQ(errno, EPERM);
    }
  }
}

TEST(HostResidency, CountsTheBaseAndSaysThatItIsShared) {
  run_on_threads(2, [](Communicator& comm) {
    SharedUnits shared(comm);
    const StoreMemory memory = shared.store.memory();
    // Three units of 6.6 KB, each in pages of its own.
    EXPECT_EQ(memory.base_bytes, kUnits * 2 * sysconf(_SC_PAGESIZE));
    EXPECT_EQ(memory.shared_bytes, memory.base_bytes);
  });
}

TEST(HostResidency, MemoryThatCannotBeHadIsAnErrorOnEveryRankBeforeItsUse) {
  const FileSizeLimit limit(64 << 10);
  std::atomic<int> told{0};
  run_on_threads(3, [&](Communicator& comm) {
    HostSegment segment(comm);
    segment.grow("layer 0", 60 << 10);
    try {
      segment.grow("layer 1", 60 << 10);
      ADD_FAILURE() << "expected an error";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.exit_code(), ExitCode::kOutOfMemory);
      EXPECT_NE(message.find("rank 1: base shared on localhost: layer 1: expected 61440 bytes of "
                             "memory beside 61440 reserved, found none: File too large."),
                std::string::npos)
          << message;
      ++told;
    }
  });
  EXPECT_EQ(told, 3);
}

TEST(HostResidency, Stage3AndFilesAreRefused) {
  const auto comm = make_single_communicator();
  EXPECT_THROW(SharedUnits(*comm, ZeroStage::k3), ArgumentError);
}

}  // namespace
}  // namespace shardtune::parallel
