// Started by mpirun on n ranks with n as argument: proves that it runs on n ranks, moves messages
// of every kind, and ends with the bits of a run on one rank. A second argument h takes the ranks
// as spread over h hosts in turn. With "mismatch" the two ranks make different calls, which must
// end the job with code 64.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>

#include "tests/parallel/training_steps.h"

namespace shardtune::parallel {
namespace {

void require(bool condition, const char* what) {
  if (!condition)
    throw ArgumentError(std::string("check failed: ") + what);
}

// Two blocks of each rank, far apart in memory, some of them side by side with those of another.
void check_blocks(Communicator& comm) {
  const int n = comm.world_size();
  const auto size_of = [](int rank, int i) { return size_t{100'003} * (i + 1) + rank; };
  std::vector<int> values;
  std::vector<std::pair<int, size_t>> places;
  for (int i = 0; i < 2; ++i) {
    for (int rank = 0; rank < n; ++rank) {
      places.emplace_back(rank, values.size());
      values.resize(values.size() + size_of(rank, i), rank == comm.rank() ? rank * 10 + i : -1);
    }
  }
  std::vector<Block> blocks;
  for (size_t k = 0; k < places.size(); ++k) {
    const auto& [rank, begin] = places[k];
    const size_t size = size_of(rank, k < static_cast<size_t>(n) ? 0 : 1);
    blocks.push_back({rank, std::as_writable_bytes(std::span(values).subspan(begin, size))});
  }
  comm.all_gather_blocks(blocks, DType::kInt32);
  for (size_t k = 0; k < places.size(); ++k) {
    const int i = k < static_cast<size_t>(n) ? 0 : 1;
    for (size_t j = 0; j < size_of(places[k].first, i); ++j)
      require(values[places[k].second + j] == places[k].first * 10 + i, "all_gather_blocks");
  }
}

void check_messages(Communicator& comm) {
  const int n = comm.world_size();
  // Above the eager limit of any transport, and of odd length.
  const size_t count = 300001;
  std::vector<std::vector<int>> received(static_cast<size_t>(n), std::vector<int>(count));
  const std::vector<int> mine(count, comm.rank() * 7 + 1);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < n; ++peer) {
    sends.push_back({peer, std::as_bytes(std::span(mine))});
    receives.push_back(
        {peer, std::as_writable_bytes(std::span(received[static_cast<size_t>(peer)]))});
  }
  comm.exchange(sends, receives, DType::kInt32);
  for (int peer = 0; peer < n; ++peer)
    require(received[static_cast<size_t>(peer)] == std::vector<int>(count, peer * 7 + 1),
            "exchange");
  std::vector<int> all(count * static_cast<size_t>(n));
  comm.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)),
                  DType::kInt32);
  for (size_t i = 0; i < all.size(); ++i)
    require(all[i] == static_cast<int>(i / count) * 7 + 1, "all_gather");
  check_blocks(comm);
  std::vector<int> values(count, comm.rank());
  comm.broadcast(std::as_writable_bytes(std::span(values)), n - 1, DType::kInt32);
  require(values == std::vector<int>(count, n - 1), "broadcast");
  require(comm.all_reduce_sum(comm.rank()) == n * (n - 1) / 2, "all_reduce_sum");
  const auto sizes = comm.all_gather_value(comm.local_size());
  const auto local_ranks = comm.all_gather_value(comm.local_rank());
  require(std::ranges::count(local_ranks, comm.local_size() - 1) >= 1, "local_rank");
  require(comm.local_rank() < comm.local_size(), "local_rank");
  require(std::ranges::count(sizes, comm.local_size()) >= comm.local_size(), "local_size");
  check_same_on_all_ranks(comm, "build", "same");
  try {
    check_same_on_all_ranks(comm, "build", comm.rank() == n - 1 ? "other" : "same");
    require(n == 1, "a difference must be found");
  } catch (const RankMismatchError&) {
    require(n > 1, "one rank cannot differ");
  }
}

/// Not between PID namespaces, where a rank cannot open the memory of another.
bool can_share_a_base() {
  const char* const setting = std::getenv("SHARDTUNE_TEST_SHARED_BASE");
  return setting == nullptr || std::string_view(setting) != "off";
}

void check_bits(Communicator& comm) {
  const std::vector<int64_t> steps{5, 1, 4, 7};
  const auto single = make_single_communicator();
  const RunResult expected = TrainingSteps(*single, ZeroStage::k0).run(steps);
  for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2, ZeroStage::k3})
    require(TrainingSteps(comm, stage).run(steps) == expected, "bits of one rank");
  if (!can_share_a_base())
    return;
  for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2})
    require(TrainingSteps(comm, stage, {.sharing = BaseSharing::kPerHost}).run(steps) == expected,
            "bits of one rank with one base per host");
}

/// Resident and proportional bytes of this rank's mappings of shared bases, in KiB: the kernel
/// divides a page by the number of its mappings.
struct Mapped {
  int64_t rss = 0;
  int64_t pss = 0;
};
Mapped mapped_bases() {
  Mapped mapped;
  std::ifstream smaps("/proc/self/smaps");
  bool is_base = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') < line.find(' '))
      is_base = line.find("/memfd:shardtune") != std::string::npos &&
                line.find(" r--s ") != std::string::npos;
    if (is_base && line.rfind("Rss:", 0) == 0)
      mapped.rss += std::atoll(line.c_str() + 4);
    if (is_base && line.rfind("Pss:", 0) == 0)
      mapped.pss += std::atoll(line.c_str() + 4);
  }
  return mapped;
}

void check_one_base_per_host(Communicator& comm) {
  constexpr int64_t kBytes = 256 << 10;
  ShardedParameterStore store(comm, ZeroStage::k2, {.sharing = BaseSharing::kPerHost});
  const UnitId unit = store.add_unit("layer 0");
  const ParameterId id =
      store.declare({"codes", unit, ParameterKind::kFrozen, DType::kUInt8, {kBytes}});
  store.publish(id, std::vector<std::byte>(store.is_publisher(id) ? kBytes : 0, std::byte{7}));
  store.seal();
  comm.barrier();  // mapped by all
  const Mapped mapped = mapped_bases();
  require(mapped.rss == kBytes >> 10, "every rank has the whole base");
  const int64_t num_hosts = comm.all_reduce_sum(comm.host_leader() == comm.rank() ? 1 : 0);
  const int64_t difference = comm.all_reduce_sum(mapped.pss) - num_hosts * (kBytes >> 10);
  require(std::abs(difference) <= 4 * comm.world_size(), "a host has one base");
  const UnitLease lease = store.acquire(unit, Pass::kForward);
  require(std::ranges::count(store.value(id).bytes(), std::byte{7}) == kBytes, "bytes of the base");
}

/// Stage 3 on one host: a rank has its part mapped, and all ranks together one base.
void check_mapped_shards(Communicator& comm) {
  if (!comm.shares_memory())
    return;
  const int64_t num_bytes = int64_t{64 << 10} * comm.world_size();
  ShardedParameterStore store(comm, ZeroStage::k3);
  const UnitId unit = store.add_unit("layer 0");
  const ParameterId id =
      store.declare({"codes", unit, ParameterKind::kFrozen, DType::kUInt8, {num_bytes}});
  const auto count = static_cast<size_t>(store.is_publisher(id) ? num_bytes : 0);
  store.publish(id, std::vector<std::byte>(count, std::byte{7}));
  store.seal();
  for (int walk = 0; walk < 2; ++walk) {
    comm.barrier();
    const Mapped mapped = mapped_bases();
    require(mapped.rss == 64 && mapped.pss == 64, "a rank has its part of the base");
    comm.barrier();
    store.begin_walk({&unit, 1});
    {
      const UnitLease lease = store.acquire(unit, Pass::kForward);
      require(std::ranges::count(store.value(id).bytes(), std::byte{7}) == num_bytes,
              "bytes of the base");
      require(mapped_bases().rss == num_bytes >> 10, "a unit at work is mapped whole");
    }
    store.end_walk();
  }
}

int run(Communicator& comm, const char* argument) {
  if (std::strcmp(argument, "mismatch") == 0) {
    if (comm.rank() == 0)
      comm.barrier();
    else
      comm.all_gather_value(1);
    return 0;
  }
  require(std::to_string(comm.world_size()) == argument, "number of ranks");
  check_messages(comm);
  check_bits(comm);
  if (can_share_a_base())
    check_one_base_per_host(comm);
  check_mapped_shards(comm);
  comm.barrier();
  if (comm.rank() == 0)
    std::printf("all checks passed on %d %s ranks\n", comm.world_size(),
                std::string(comm.backend()).c_str());
  return 0;
}

}  // namespace
}  // namespace shardtune::parallel

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3)
    return 64;
  std::unique_ptr<shardtune::parallel::Communicator> comm;
  try {
    comm = argc == 2 ? shardtune::parallel::make_communicator()
                     : shardtune::parallel::make_mpi_communicator(
                           {.num_pretended_hosts = std::atoi(argv[2])});
    return shardtune::parallel::run(*comm, argv[1]);
  } catch (const shardtune::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    if (comm)
      comm->abort(static_cast<int>(error.exit_code()));
    return static_cast<int>(error.exit_code());
  }
}
