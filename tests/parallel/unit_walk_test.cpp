// The walk over units: what it refuses, what a rank without work does, and what is in memory.
#include "parallel/unit_walk.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <numeric>

#include "parallel/background_task.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"

namespace shardtune::parallel {
namespace {

constexpr int64_t kRows = 50;
constexpr int64_t kColumns = 24;
constexpr int64_t kUnitBytes = kRows * kColumns * 4 + 16 * 4;  // the matrix and a rounded bias

float expected_value(size_t unit, int64_t i) { return static_cast<float>(unit * 100000 + i); }

/// Units of one matrix and one vector each; sealed and published.
struct Units {
  Units(Communicator& communicator, ZeroStage stage, int num_units = 4,
        int64_t max_held_bytes = kMaxHeldBytes)
      : comm(communicator), store(communicator, stage, {.max_held_bytes = max_held_bytes}) {
    for (int u = 0; u < num_units; ++u) {
      const std::string name = "unit" + std::to_string(u);
      units.push_back(store.add_unit(name));
      tables.push_back(store.declare({name + ".weight",
                                      units.back(),
                                      ParameterKind::kFrozen,
                                      DType::kFloat32,
                                      {kRows, kColumns}}));
      biases.push_back(store.declare(
          {name + ".bias", units.back(), ParameterKind::kFrozen, DType::kFloat32, {9}}));
    }
    for (size_t u = 0; u < units.size(); ++u) {
      publish(tables[u], u, kRows * kColumns);
      publish(biases[u], u, 9);
    }
    store.seal();
  }
  void publish(ParameterId id, size_t unit, int64_t count) {
    std::vector<float> values;
    for (int64_t i = 0; store.is_publisher(id) && i < count; ++i)
      values.push_back(expected_value(unit, i));
    store.publish(id, std::as_bytes(std::span(values)));
  }
  void expect_values(size_t unit) const {
    for (const ParameterId id : {tables[unit], biases[unit]}) {
      const auto values = store.value(id).span<const float>();
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(values[i], expected_value(unit, static_cast<int64_t>(i)));
    }
  }
  void lease(size_t unit) {
    const UnitLease held = store.acquire(units[unit], Pass::kForward);
    expect_values(unit);
  }
  std::vector<UnitId> walk(const std::vector<size_t>& order) const {
    std::vector<UnitId> result;
    for (const size_t u : order)
      result.push_back(units[u]);
    return result;
  }

  Communicator& comm;
  ShardedParameterStore store;
  std::vector<UnitId> units;
  std::vector<ParameterId> tables, biases;
};

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "no error";
}

struct Way {
  const char* name;
  ZeroStage stage;
  ThreadTransport transport = ThreadTransport::kBuffers;
};

class UnitWalkStages : public testing::TestWithParam<Way> {
 protected:
  static void run_on_threads(int ranks, const std::function<void(Communicator&)>& body) {
    parallel::run_on_threads(ranks, body, GetParam().transport);
  }
};

// The same misuse is refused at every stage, with one rank too, where nothing is gathered.
TEST_P(UnitWalkStages, ALeaseOutOfOrderNamesBothUnits) {
  for (const int world_size : {1, 2}) {
    run_on_threads(world_size, [](Communicator& comm) {
      Units all(comm, GetParam().stage);
      all.store.begin_walk(all.walk({0, 1, 2}));
      all.lease(0);
      const std::string text = error_of([&] { all.lease(2); });
      EXPECT_NE(text.find("expected 'unit1', found 'unit2'"), std::string::npos) << text;
      EXPECT_NE(error_of([&] { all.store.fetch_rows({}); }).find("found 'fetch_rows()'"),
                std::string::npos);
      for (const size_t u : {0, 0, 1, 1, 2})  // the unit at work may be leased again
        all.lease(u);
      EXPECT_NE(error_of([&] { all.lease(3); }).find("expected 'the end'"), std::string::npos);
      EXPECT_NE(error_of([&] { all.store.publish_updates(); }).find("end_walk"), std::string::npos);
      EXPECT_NE(error_of([&] { all.store.begin_walk({}); }).find("end_walk"), std::string::npos);
      all.store.end_walk();
      EXPECT_NE(error_of([&] { all.store.end_walk(); }).find("found none"), std::string::npos);
      {
        const UnitLease lease = all.store.acquire(all.units[3], Pass::kForward);
        EXPECT_NE(error_of([&] { all.store.begin_walk({}); }).find("no lease"), std::string::npos);
      }
      all.store.begin_walk(all.walk({1}));
      const UnitLease left = all.store.acquire(all.units[1], Pass::kForward);
      EXPECT_NE(error_of([&] { all.store.end_walk(); }).find("'unit1' is still leased"),
                std::string::npos);
    });
  }
}

TEST_P(UnitWalkStages, RanksMayWorkReplayOrStopEarly) {
  run_on_threads(4, [](Communicator& comm) {
    Units all(comm, GetParam().stage);
    for (int round = 0; round < 3; ++round) {
      all.store.begin_walk(all.walk({0, 1, 2, 3, 3, 2, 1, 0}));
      const int part = (comm.rank() + round) % 4;  // nothing, a half, all but one, everything
      const std::vector<size_t> order{0, 1, 2, 3, 2, 1, 0};
      for (size_t i = 0; i < order.size() * static_cast<size_t>(part) / 3; ++i)
        all.lease(order[i]);
      all.store.end_walk();
    }
    EXPECT_THROW(all.store.value(all.tables[0]), ArgumentError);
  });
}

// As a head that is leased whole: the units stay while others come and go.
TEST_P(UnitWalkStages, UnitsMayStayLeasedOverOthers) {
  run_on_threads(3, [](Communicator& comm) {
    Units all(comm, GetParam().stage, 6);
    all.store.begin_walk(all.walk({0, 1, 2, 3, 4, 5, 0}));
    if (comm.rank() != 1) {
      all.lease(0);
      std::vector<UnitLease> held;
      for (size_t u = 1; u < 5; ++u)
        held.push_back(all.store.acquire(all.units[u], Pass::kForward));
      all.lease(5);
      for (size_t u = 1; u < 5; ++u) {
        all.lease(u);
        all.expect_values(u);
      }
      held.clear();
      all.lease(0);
    }
    all.store.end_walk();
  });
}

TEST_P(UnitWalkStages, RowsComeFromTheirOwners) {
  run_on_threads(3, [](Communicator& comm) {
    Units all(comm, GetParam().stage, 2);
    all.store.begin_walk(std::vector{kFetchRows, all.units[1], kFetchRows});
    if (comm.rank() != 2) {  // rank 2 has no work, rank 0 asks for every row, rank 1 for one
      const std::vector<int32_t> rows0 =
          comm.rank() == 0 ? std::vector<int32_t>{} : std::vector<int32_t>{49};
      std::vector<int32_t> rows1;
      for (int32_t row = 0; comm.rank() == 0 && row < kRows; ++row)
        rows1.push_back(kRows - 1 - row);
      std::vector<float> out(static_cast<size_t>(kColumns * (comm.rank() == 0 ? kRows : 1)));
      const auto bytes = std::as_writable_bytes(std::span(out));
      if (comm.rank() == 0)
        all.store.fetch_rows(
            std::vector<RowFetch>{{all.tables[0], rows0, {}}, {all.tables[1], rows1, bytes}});
      else
        all.store.fetch_rows(std::vector<RowFetch>{{all.tables[0], rows0, bytes}});
      for (size_t i = 0; i < out.size(); ++i) {
        const auto row = static_cast<int64_t>(i) / kColumns;
        const int64_t wanted = comm.rank() == 0 ? kRows - 1 - row : 49;
        ASSERT_EQ(out[i], expected_value(comm.rank() == 0 ? 1 : 0,
                                         wanted * kColumns + static_cast<int64_t>(i) % kColumns));
      }
      all.lease(1);
    }
    all.store.end_walk();
    std::vector<std::byte> row(kColumns * 4);
    const std::vector<int32_t> bad{50};
    EXPECT_NE(error_of([&] {
                all.store.fetch_rows(std::vector<RowFetch>{{all.tables[0], bad, row}});
              }).find("expected a row below 50, found 50"),
              std::string::npos);
    EXPECT_NE(error_of([&] {
                all.store.fetch_rows(std::vector<RowFetch>{{all.biases[0], bad, row}});
              }).find("expected a frozen matrix"),
              std::string::npos);
  });
}

INSTANTIATE_TEST_SUITE_P(All, UnitWalkStages,
                         testing::Values(Way{"Stage0", ZeroStage::k0}, Way{"Stage3", ZeroStage::k3},
                                         Way{"Stage3Mapped", ZeroStage::k3,
                                             ThreadTransport::kSharedMemory}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Stage3, RanksThatWalkDifferentlyAreToldAtTheNextLease) {
  EXPECT_THROW(run_on_threads(2,
                              [](Communicator& comm) {
                                Units all(comm, ZeroStage::k3);
                                const size_t second = comm.rank() == 0 ? 1 : 2;
                                all.store.begin_walk(all.walk({0, second}));
                                all.lease(0);
                                all.lease(second);
                              }),
               RankMismatchError);
}

TEST(Stage3, ARankThatFailsInTheMiddleEndsTheOthers) {
  constexpr int kNumUnits = 20;  // more than are gathered ahead
  std::vector<size_t> order(kNumUnits);
  std::iota(order.begin(), order.end(), size_t{0});
  std::atomic<int> num_comm_errors = 0;
  EXPECT_THROW(run_on_threads(3,
                              [&](Communicator& comm) {
                                Units all(comm, ZeroStage::k3, kNumUnits);
                                all.store.begin_walk(all.walk(order));
                                all.lease(0);
                                if (comm.rank() == 1)
                                  throw DataError("this rank's own error");
                                try {
                                  for (size_t u = 1; u < kNumUnits; ++u)
                                    all.lease(u);
                                } catch (const CommError&) {
                                  ++num_comm_errors;
                                  throw;
                                }
                              }),
               DataError);
  EXPECT_EQ(num_comm_errors, 2);
}

TEST(Stage3, NoRankHoldsMoreThanItsPartAndUnitsAhead) {
  constexpr int kNumUnits = 12;
  run_on_threads(4, [](Communicator& comm) {
    Units all(comm, ZeroStage::k3, kNumUnits);
    const auto expect_little = [&] {
      const StoreMemory memory = all.store.memory();
      // Per unit at most one row above the even part.
      EXPECT_LE(memory.base_bytes, kNumUnits * (kUnitBytes / 4 + kColumns * 4));
      EXPECT_EQ(memory.unit_bytes, (1 + gather_ahead(kUnitBytes)) * kUnitBytes);
    };
    expect_little();
    const int64_t total = comm.all_reduce_sum(all.store.memory().base_bytes);
    EXPECT_EQ(total, kNumUnits * kUnitBytes);
    std::vector<size_t> order(kNumUnits);
    std::iota(order.begin(), order.end(), size_t{0});
    all.store.begin_walk(all.walk(order));
    for (const size_t u : order)
      all.lease(u);
    all.store.end_walk();
    expect_little();
    // What stays leased is counted.
    all.store.begin_walk(all.walk(order));
    std::vector<UnitLease> held;
    for (const size_t u : order)
      held.push_back(all.store.acquire(all.units[u], Pass::kForward));
    EXPECT_EQ(all.store.memory().unit_bytes, kNumUnits * kUnitBytes);
    held.clear();
    all.store.end_walk();
  });
}

TEST(Stage3, OneRankHoldsItsUnitsWholeAndGathersNothing) {
  const auto comm = make_single_communicator();
  Units all(*comm, ZeroStage::k3);
  EXPECT_EQ(all.store.memory().unit_bytes, 0);
  const std::string before = comm->recent_calls();
  all.store.begin_walk(all.walk({0, 1}));
  all.lease(0);
  all.store.end_walk();
  EXPECT_EQ(comm->recent_calls(), before);
}

TEST(Stage3, FrozenParametersAreDeclaredBeforeTheirUnitIsPublished) {
  run_on_threads(2, [](Communicator& comm) {
    ShardedParameterStore store(comm, ZeroStage::k3);
    const UnitId unit = store.add_unit("layer 0");
    const auto declare = [&](const char* name) {
      return store.declare({name, unit, ParameterKind::kFrozen, DType::kUInt8, {4}});
    };
    const std::vector<std::byte> bytes(4);
    store.publish(declare("first"), bytes);
    const ParameterId second = declare("second");
    EXPECT_NE(error_of([&] { store.publish(second, bytes); }).find("declared after"),
              std::string::npos);
    EXPECT_NE(error_of([&] { store.acquire(unit, Pass::kForward); }).find("seal()"),
              std::string::npos);
  });
}

TEST(BackgroundTask, RunsBesideAndGivesItsErrorOnce) {
  BackgroundTask task;
  std::thread::id ran_on;
  task.start([&] { ran_on = std::this_thread::get_id(); });
  task.wait();
  EXPECT_NE(ran_on, std::this_thread::get_id());
  task.start([] { throw DataError("in the background"); });
  EXPECT_THROW(task.wait(), DataError);
  task.wait();
  std::atomic<bool> done = false;
  {
    BackgroundTask other;
    other.start([&] { done = true; });
  }
  EXPECT_TRUE(done);  // the end waits
}

TEST(BackgroundTask, RunsInOrderAndNothingAfterAnError) {
  BackgroundTask task;
  std::vector<int> ran;
  std::promise<void> gate;
  task.start([&] { gate.get_future().wait(); });
  task.start([&] { ran.push_back(1); });
  task.start([] { throw DataError("the third"); });
  task.start([&] { ran.push_back(4); });
  gate.set_value();
  task.wait();
  task.wait();  // of the second: the third one's error is not its own
  while (task.running(std::chrono::seconds(1))) {
  }
  task.start([&] { ran.push_back(5); });  // before the error is taken
  EXPECT_THROW(task.wait(), DataError);
  task.wait();
  EXPECT_EQ(ran, std::vector<int>{1});
  task.start([&] { ran.push_back(6); });
  task.wait();
  EXPECT_EQ(ran, (std::vector<int>{1, 6}));
}

}  // namespace
}  // namespace shardtune::parallel
