// Stage 3 on one host whose ranks share memory: the bits of one rank, no waiting inside a walk, and
// what a rank has mapped of the others' parts.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/dry_run.h"
#include "parallel/host_pages.h"
#include "parallel/planned_store.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/file_size_limit.h"
#include "tests/parallel/frozen_units.h"
#include "tests/parallel/training_steps.h"

namespace shardtune::parallel {
namespace {

constexpr int kUnits = 4;
constexpr int64_t kRows = 700;
constexpr int64_t kColumns = 33;  // 92,400 bytes: 23 pages

void run_sharing(int ranks, const std::function<void(Communicator&)>& body) {
  run_on_threads(ranks, body, ThreadTransport::kSharedMemory);
}

struct Mapped {
  explicit Mapped(Communicator& comm)
      : store(comm, ZeroStage::k3), frozen(store, kUnits, kRows, kColumns) {}

  void walk_all(int generation) {
    store.begin_walk(frozen.units);
    for (int u = 0; u < kUnits; ++u) {
      const UnitLease lease = store.acquire(frozen.units[static_cast<size_t>(u)], Pass::kForward);
      frozen.expect_values(u, generation);
    }
    store.end_walk();
  }

  ShardedParameterStore store;
  FrozenUnits frozen;
};

TEST(MappedResidency, StepsGiveTheBitsOfOneRank) {
  const std::vector<int64_t> micro_batches{5, 1, 9, 2, 3, 7};
  const auto single = make_single_communicator();
  const RunResult expected = TrainingSteps(*single, ZeroStage::k0).run(micro_batches);
  for (const int ranks : {2, 3, 5}) {
    run_sharing(ranks, [&](Communicator& comm) {
      EXPECT_TRUE(TrainingSteps(comm, ZeroStage::k3).run(micro_batches) == expected) << ranks;
    });
  }
}

TEST(MappedResidency, UnitsAndRowsAreThoseThatWerePublishedLast) {
  for (const int ranks : {2, 3, 5}) {
    run_sharing(ranks, [](Communicator& comm) {
      Mapped mapped(comm);
      for (int generation = 0; generation <= 3; ++generation) {
        if (generation > 0)
          mapped.frozen.publish_tables(generation);
        mapped.walk_all(generation);
        mapped.frozen.expect_rows(generation);
      }
    });
  }
}

// Gathers would wait for ever: each rank goes through its walk while the other is outside of one.
TEST(MappedResidency, NoRankWaitsForAnotherInsideAWalk) {
  std::atomic<int> walked{0};
  run_sharing(2, [&](Communicator& comm) {
    Mapped mapped(comm);
    const std::string before = comm.recent_calls();
    while (walked < comm.rank())
      std::this_thread::yield();
    mapped.walk_all(0);
    ++walked;
    while (walked < 2)
      std::this_thread::yield();
    // One without work leaves a walk that it has begun.
    mapped.store.begin_walk(mapped.frozen.units);
    mapped.store.end_walk();
    mapped.walk_all(0);
    EXPECT_EQ(comm.recent_calls(), before);
    EXPECT_EQ(mapped.store.traffic(), StoreTraffic());
  });
}

/// The mapping that holds an address, and its resident bytes.
struct Mapping {
  std::string access;
  int64_t resident = -1;
};
Mapping mapping_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  std::ifstream smaps("/proc/self/smaps");
  Mapping found;
  bool is_it = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::string access;
    if (words >> std::hex >> begin >> dash >> end >> access && dash == '-') {
      is_it = begin <= address && address < end;
      if (is_it)
        found.access = access;
    } else if (is_it && line.rfind("Rss:", 0) == 0) {
      found.resident = std::atoll(line.c_str() + 4) * 1024;
    }
  }
  return found;
}

TEST(MappedResidency, OthersPartsAreMappedWhileAUnitWorks) {
  run_sharing(3, [](Communicator& comm) {
    Mapped mapped(comm);
    const void* table = nullptr;
    {
      const UnitLease lease = mapped.store.acquire(mapped.frozen.units[1], Pass::kForward);
      table = mapped.store.value(mapped.frozen.tables[1]).raw();
      const Mapping whole = mapping_of(table);
      EXPECT_EQ(whole.access, "r--s");
      EXPECT_EQ(whole.resident, pages_of(0, kRows * kColumns * 4 + 64).num_bytes());
    }
    // This rank's third stays, and the pages that its ends are in.
    const Mapping kept = mapping_of(table);
    EXPECT_GE(kept.resident, kRows * kColumns * 4 / 3 - kColumns * 4);
    EXPECT_LE(kept.resident, kRows * kColumns * 4 / 3 + 2 * 4096);
    mapped.walk_all(0);
    mapped.frozen.expect_rows(0);
    EXPECT_EQ(mapping_of(table).resident, kept.resident);
    comm.barrier();
  });
}

TEST(MappedResidency, APlanCountsItsPages) {
  run_sharing(3, [](Communicator& comm) {
    Mapped mapped(comm);
    mapped.walk_all(0);
    const StoreMemory memory = mapped.store.memory();
    DryRun dry_run;
    PlannedStore planned(ZeroStage::k3, comm.rank(), 3, FrozenPlace::kHost);
    for (int32_t i = 0; i < mapped.store.num_parameters(); ++i) {
      const ParameterSpec& spec = mapped.store.spec(ParameterId{i});
      if (i % 3 == 0)
        planned.add_unit("unit" + std::to_string(i / 3));
      planned.declare(spec);
    }
    for (int32_t i = 0; i < mapped.store.num_parameters(); ++i)
      planned.publish(ParameterId{i}, {});
    planned.seal();
    EXPECT_LE(planned.bytes().base(), memory.base_bytes);  // without gaps between parameters
    EXPECT_GE(planned.bytes().base(), memory.base_bytes - kUnits * 2 * 64);
    EXPECT_EQ(planned.bytes().master, memory.adapter_bytes);
    EXPECT_LE(planned.bytes().gather, dry_run.pool().bytes_in_use());
    EXPECT_LT(dry_run.pool().bytes_in_use(), 4096);  // no shard
    const int64_t between = dry_run.bytes_now();
    planned.begin_walk(mapped.frozen.units);
    {
      const UnitLease lease = planned.acquire(mapped.frozen.units[0], Pass::kForward);
      EXPECT_GT(dry_run.bytes_now(), between);
    }
    planned.end_walk();
    EXPECT_EQ(dry_run.bytes_now(), between);
    EXPECT_EQ(planned.bytes().gather + planned.peak_foreign_bytes(), memory.unit_bytes);
    EXPECT_EQ(planned.traffic(), StoreTraffic());
  });
}

TEST(MappedResidency, MemoryThatCannotBeHadIsAnErrorOfAllRanks) {
  std::atomic<int> told{0};
  const FileSizeLimit limit(4 << 20);
  run_sharing(3, [&](Communicator& comm) {
    ShardedParameterStore store(comm, ZeroStage::k3);
    const UnitId unit = store.add_unit("layer 0");
    const ParameterId id =
        store.declare({"codes", unit, ParameterKind::kFrozen, DType::kUInt8, {6 << 20}});
    try {
      store.publish(id, std::vector<std::byte>(store.is_publisher(id) ? 6 << 20 : 0));
      ADD_FAILURE() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kOutOfMemory);
      EXPECT_NE(std::string(error.what())
                    .find("rank 2: shards of stage 3 on localhost: layer 0: expected 2097152 bytes "
                          "of memory beside 0 reserved, found none: File too large."),
                std::string::npos)
          << error.what();
      ++told;
    }
  });
  EXPECT_EQ(told, 3);
}

TEST(MappedResidency, AStrayWriteFaults) {
  EXPECT_EXIT(
      {
        std::signal(SIGSEGV, SIG_DFL);
        run_sharing(2, [](Communicator& comm) {
          Mapped mapped(comm);
          const UnitLease lease = mapped.store.acquire(mapped.frozen.units[0], Pass::kForward);
          mapped.store.value(mapped.frozen.tables[0]).data<float>()[3] = 1.0f;
        });
      },
      ::testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace shardtune::parallel
