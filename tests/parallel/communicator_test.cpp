#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "parallel/thread_communicator.h"

namespace shardtune::parallel {
namespace {

std::span<std::byte> bytes_of(std::vector<int>& values) {
  return std::as_writable_bytes(std::span(values));
}

// Everything here holds for ranks that read each other's buffers and over shared memory.
class OnThreads : public ::testing::TestWithParam<ThreadTransport> {
 protected:
  static void run(int world_size, const std::function<void(Communicator&)>& body) {
    run_on_threads(world_size, body, GetParam());
  }
  static std::string mismatch_of(const std::function<void(Communicator&)>& rank0,
                                 const std::function<void(Communicator&)>& rank1);
};
using Communicators = OnThreads;
using CommunicatorMismatch = OnThreads;

TEST_P(Communicators, MovesBytesBetweenAllRanks) {
  for (const int world_size : {1, 2, 3, 8}) {
    std::atomic<int> num_ranks = 0;
    run(world_size, [&](Communicator& comm) {
      ++num_ranks;
      comm.barrier();
      for (int root = 0; root < world_size; ++root) {
        std::vector<int> values(5, comm.rank() == root ? root + 100 : -1);
        comm.broadcast(bytes_of(values), root, DType::kInt32);
        EXPECT_EQ(values, std::vector<int>(5, root + 100));
      }
      const auto ranks = comm.all_gather_value(comm.rank());
      for (int r = 0; r < world_size; ++r)
        EXPECT_EQ(ranks[static_cast<size_t>(r)], r);
      EXPECT_EQ(comm.all_reduce_max(comm.rank()), world_size - 1);
      EXPECT_EQ(comm.all_reduce_min(comm.rank()), 0);
      EXPECT_EQ(comm.all_reduce_sum(2), 2 * world_size);
      EXPECT_TRUE(comm.any(comm.rank() == 0));
      EXPECT_EQ(comm.all(comm.rank() == 0), world_size == 1);
      const auto texts = comm.all_gather_strings(std::string(size_t(comm.rank()) * 3, 'x'));
      for (int r = 0; r < world_size; ++r)
        EXPECT_EQ(texts[static_cast<size_t>(r)], std::string(size_t(r) * 3, 'x'));
    });
    EXPECT_EQ(num_ranks, world_size);
  }
}

TEST_P(Communicators, WaitingForALateRankIsIdleTime) {
  run(2, [&](Communicator& comm) {
    comm.barrier();
    const ActivityTimes before = activity_times();
    if (comm.rank() == 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    comm.all_reduce_max(1);
    const ActivityTimes after = activity_times();
    const auto idle = static_cast<size_t>(Activity::kIdle);
    if (comm.rank() == 0)
      EXPECT_GE(after[idle] - before[idle], 0.025);
    else
      EXPECT_LT(after[idle] - before[idle], 0.025);
    EXPECT_EQ(ActivityScope::current(), Activity::kOther);
    // Inside a wait for units all of it counts for that.
    const ActivityScope units(Activity::kUnits);
    const ActivityTimes inside = activity_times();
    comm.barrier();
    EXPECT_EQ(activity_times()[idle], inside[idle]);
  });
}

TEST_P(Communicators, ExchangeKeepsTheOrderOfAPair) {
  for (const int world_size : {1, 2, 5}) {
    run(world_size, [&](Communicator& comm) {
      const auto n = static_cast<size_t>(world_size);
      // Two messages to every rank, oneself included: of length 3, and of the receiver's rank.
      std::vector<std::vector<int>> sent(2 * n), received(2 * n);
      std::vector<Send> sends;
      std::vector<Receive> receives;
      for (int peer = 0; peer < world_size; ++peer) {
        const auto p = static_cast<size_t>(peer);
        sent[2 * p].assign(3, comm.rank() * 100 + peer);
        sent[2 * p + 1].assign(p, comm.rank());
        received[2 * p].resize(3);
        received[2 * p + 1].resize(static_cast<size_t>(comm.rank()));
        for (const size_t i : {2 * p, 2 * p + 1}) {
          sends.push_back({peer, bytes_of(sent[i])});
          receives.push_back({peer, bytes_of(received[i])});
        }
      }
      comm.exchange(sends, receives, DType::kInt32);
      for (int peer = 0; peer < world_size; ++peer) {
        const auto p = static_cast<size_t>(peer);
        EXPECT_EQ(received[2 * p], std::vector<int>(3, peer * 100 + comm.rank()));
        EXPECT_EQ(received[2 * p + 1], std::vector<int>(size_t(comm.rank()), peer));
      }
    });
  }
}

// Rank r gives r blocks of r * 1000 + i bytes, and one more that is empty; they lie in another
// order in memory than in the list.
TEST_P(Communicators, BlocksOfDifferentSizesComeToAll) {
  for (const int world_size : {1, 2, 5}) {
    run(world_size, [&](Communicator& comm) {
      std::vector<std::vector<std::byte>> places;
      std::vector<Block> blocks;
      for (int owner = 0; owner < world_size; ++owner) {
        for (int i = 0; i <= owner; ++i)
          places.emplace_back(i < owner ? static_cast<size_t>(owner * 1000 + i) : 0,
                              std::byte(owner == comm.rank() ? owner * 10 + i + 1 : 0));
      }
      size_t place = places.size();
      for (int owner = world_size - 1; owner >= 0; --owner) {
        for (int i = owner; i >= 0; --i)
          blocks.push_back({owner, places[--place]});
      }
      comm.all_gather_blocks(blocks);
      for (int owner = 0; owner < world_size; ++owner) {
        for (int i = 0; i <= owner; ++i, ++place)
          EXPECT_EQ(std::ranges::count(places[place], std::byte(owner * 10 + i + 1)),
                    i < owner ? owner * 1000 + i : 0);
      }
    });
  }
}

// Runs the bodies on two ranks; every rank must fail alike, with both calls in the message.
std::string OnThreads::mismatch_of(const std::function<void(Communicator&)>& rank0,
                                   const std::function<void(Communicator&)>& rank1) {
  std::atomic<int> num_failed = 0;
  std::string text;
  try {
    run(2, [&](Communicator& comm) {
      try {
        comm.rank() == 0 ? rank0(comm) : rank1(comm);
      } catch (const RankMismatchError&) {
        ++num_failed;
        throw;
      }
    });
  } catch (const RankMismatchError& error) {
    text = error.what();
  }
  EXPECT_EQ(num_failed, 2);
  return text;
}

std::vector<int> buffer(size_t count) { return std::vector<int>(count); }

TEST_P(CommunicatorMismatch, DifferentCallsAreShown) {
  const std::string text = mismatch_of([](Communicator& comm) { comm.barrier(); },
                                       [](Communicator& comm) { comm.all_gather_value(1); });
  EXPECT_NE(text.find("rank 0 barrier(#0"), std::string::npos) << text;
  EXPECT_NE(text.find("rank 1 all_gather(#0, 4 bytes"), std::string::npos) << text;
}

TEST_P(CommunicatorMismatch, SizesRootsTypesTagsAndConfigurations) {
  const auto broadcast = [](size_t count, int root, DType dtype, uint64_t tag) {
    return [=](Communicator& comm) {
      auto values = buffer(count);
      comm.broadcast(bytes_of(values), root, dtype, tag);
    };
  };
  const auto usual = broadcast(4, 0, DType::kInt32, 0);
  EXPECT_NE(mismatch_of(usual, broadcast(5, 0, DType::kInt32, 0)).find("20 bytes"),
            std::string::npos);
  EXPECT_NE(mismatch_of(usual, broadcast(4, 1, DType::kInt32, 0)).find("root 1"),
            std::string::npos);
  EXPECT_NE(mismatch_of(usual, broadcast(4, 0, DType::kFloat32, 0)).find("float32"),
            std::string::npos);
  EXPECT_NE(mismatch_of(usual, broadcast(4, 0, DType::kInt32, 0xab)).find("tag ab"),
            std::string::npos);
  const auto configured = [](uint64_t word) {
    return [=](Communicator& comm) {
      comm.set_config_word(word);
      comm.barrier();
    };
  };
  EXPECT_NE(mismatch_of(configured(1), configured(0xbeef)).find("config beef"), std::string::npos);
}

TEST_P(CommunicatorMismatch, MessagesThatDoNotPairUp) {
  const auto nothing = [](Communicator& comm) { comm.exchange({}, {}); };
  const auto send_to_1 = [](Communicator& comm) {
    auto values = buffer(3);
    const Send send{1, bytes_of(values)};
    comm.exchange({&send, 1}, {});
  };
  const auto receive_from_0 = [](size_t count) {
    return [=](Communicator& comm) {
      auto values = buffer(count);
      const Receive receive{0, bytes_of(values)};
      comm.exchange({}, {&receive, 1});
    };
  };
  EXPECT_NE(mismatch_of(send_to_1, nothing).find("rank 0 sends 12 bytes"), std::string::npos);
  EXPECT_NE(mismatch_of(nothing, receive_from_0(3)).find("expects 12 bytes"), std::string::npos);
  EXPECT_NE(mismatch_of(send_to_1, receive_from_0(2)).find("expects 8 bytes"), std::string::npos);
}

TEST_P(CommunicatorMismatch, BlocksOfOtherSizesOrOwners) {
  const auto gather = [](std::vector<std::pair<int, size_t>> list) {
    return [=](Communicator& comm) {
      auto values = buffer(8);
      std::vector<Block> blocks;
      for (const auto& [owner, size] : list)
        blocks.push_back({owner, bytes_of(values).first(size)});
      comm.all_gather_blocks(blocks);
    };
  };
  const auto usual = gather({{0, 12}, {1, 4}});
  EXPECT_NE(mismatch_of(usual, gather({{0, 12}, {1, 8}})).find("all_gather_blocks(#0, 20 bytes"),
            std::string::npos);
  EXPECT_NE(mismatch_of(usual, gather({{1, 12}, {0, 4}})), "");
  EXPECT_NE(mismatch_of(usual, gather({{0, 4}, {1, 12}})), "");
}

TEST_P(CommunicatorMismatch, ValuesThatMustBeEqual) {
  const auto check = [](std::string value) {
    return [=](Communicator& comm) { check_same_on_all_ranks(comm, "config hash", value); };
  };
  run(3, check("abc"));
  const std::string text = mismatch_of(check("abc"), check("abd\n"));
  EXPECT_NE(text.find("config hash"), std::string::npos);
  EXPECT_NE(text.find("'abc'"), std::string::npos);
  EXPECT_NE(text.find("'abd?'"), std::string::npos);
}

// Far above the size of a ring, of odd length, and of a size per rank that differs from call to
// call, so that rings wrap at every place.
TEST_P(Communicators, LargeAndOddSizesArriveWhole) {
  for (const int world_size : {2, 3, 5}) {
    run(world_size, [&](Communicator& comm) {
      const auto n = static_cast<size_t>(world_size);
      const auto value = [](size_t i, int from, int to) {
        return static_cast<int>(i * 2654435761u) ^ (from * 1000 + to);
      };
      for (const size_t count : {1u, 1023u, 1025u, 20011u, 700001u}) {
        std::vector<int> mine(count), all(n * count);
        for (size_t i = 0; i < count; ++i)
          mine[i] = value(i, comm.rank(), 0);
        comm.all_gather(bytes_of(mine), bytes_of(all));
        for (size_t i = 0; i < n * count; ++i)
          ASSERT_EQ(all[i], value(i % count, static_cast<int>(i / count), 0));
        comm.broadcast(bytes_of(mine), world_size - 1);
        for (size_t i = 0; i < count; ++i)
          ASSERT_EQ(mine[i], value(i, world_size - 1, 0));
        // To each peer three messages, one of a single byte; sizes depend on the pair.
        std::vector<std::vector<int>> sent(n), received(n);
        std::vector<Send> sends;
        std::vector<Receive> receives;
        for (int peer = 0; peer < world_size; ++peer) {
          const auto p = static_cast<size_t>(peer);
          sent[p].resize(count + p);
          received[p].resize(count + static_cast<size_t>(comm.rank()));
          for (size_t i = 0; i < sent[p].size(); ++i)
            sent[p][i] = value(i, comm.rank(), peer);
          const auto out = std::as_bytes(std::span(sent[p]));
          const auto in = bytes_of(received[p]);
          for (const size_t begin : {size_t{0}, size_t{1}, size_t{2}}) {
            sends.push_back({peer, begin < 2 ? out.subspan(begin, 1) : out.subspan(begin)});
            receives.push_back({peer, begin < 2 ? in.subspan(begin, 1) : in.subspan(begin)});
          }
        }
        comm.exchange(sends, receives);
        for (int peer = 0; peer < world_size; ++peer) {
          const auto p = static_cast<size_t>(peer);
          for (size_t i = 0; i < received[p].size(); ++i)
            ASSERT_EQ(received[p][i], value(i, peer, comm.rank()));
        }
      }
    });
  }
}

// A rank of stage 3 gathers on a thread of its own, in turn with the thread that computes.
TEST_P(Communicators, ThreadsOfARankMayTakeTurns) {
  run(3, [](Communicator& comm) {
    for (int round = 0; round < 20; ++round) {
      EXPECT_EQ(comm.all_reduce_sum(round), 3 * round);
      std::vector<int> mine(5000, comm.rank()), all(15000);
      std::thread other([&] { comm.all_gather(bytes_of(mine), bytes_of(all)); });
      other.join();
      EXPECT_EQ(all[9999], 1);
      EXPECT_EQ(all[10000], 2);
    }
  });
}

TEST_P(Communicators, AFailingRankDoesNotLeaveOthersWaiting) {
  try {
    run(3, [](Communicator& comm) {
      if (comm.rank() == 1)
        throw DataError("rank 1 found a bad file");
      comm.barrier();
    });
    FAIL();
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(), "rank 1 found a bad file");
  }
}

TEST_P(Communicators, ALeavingRankIsReported) {
  EXPECT_THROW(run(2,
                   [](Communicator& comm) {
                     if (comm.rank() == 0)
                       comm.barrier();
                   }),
               CommError);
}

const auto kTransports =
    ::testing::Values(ThreadTransport::kBuffers, ThreadTransport::kSharedMemory);
std::string transport_name(const ::testing::TestParamInfo<ThreadTransport>& info) {
  return info.param == ThreadTransport::kBuffers ? "Buffers" : "SharedMemory";
}
INSTANTIATE_TEST_SUITE_P(Over, Communicators, kTransports, transport_name);
INSTANTIATE_TEST_SUITE_P(Over, CommunicatorMismatch, kTransports, transport_name);

TEST(Communicator, RefusesPeersAndSizesThatCannotBe) {
  const auto comm = make_single_communicator();
  auto values = buffer(2);
  EXPECT_THROW(comm->broadcast(bytes_of(values), 1), ArgumentError);
  EXPECT_THROW(comm->all_gather(bytes_of(values), bytes_of(values).first(4)), ArgumentError);
  const Send send{2, bytes_of(values)};
  EXPECT_THROW(comm->exchange({&send, 1}, {}), ArgumentError);
  const Send self{0, bytes_of(values)};
  EXPECT_THROW(comm->exchange({&self, 1}, {}), ArgumentError);
  const Block block{1, bytes_of(values)};
  EXPECT_THROW(comm->all_gather_blocks({&block, 1}), ArgumentError);
}

TEST(Communicator, RemembersTheLast64Calls) {
  const auto comm = make_single_communicator();
  for (int i = 0; i < 70; ++i)
    comm->barrier();
  const std::string calls = comm->recent_calls();
  EXPECT_EQ(std::ranges::count(calls, '\n'), 64);
  EXPECT_EQ(calls.find("barrier(#5,"), std::string::npos);
  EXPECT_NE(calls.find("barrier(#6,"), std::string::npos);
  EXPECT_NE(calls.find("barrier(#69,"), std::string::npos);
}

}  // namespace
}  // namespace shardtune::parallel
