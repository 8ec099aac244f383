// Started by mpirun on n ranks with n as argument: proves that it runs on n ranks, moves messages
// of every kind, and ends with the bits of a run on one rank. With "mismatch" the two ranks make
// different calls, which must end the job with code 64.
#include <cstdio>
#include <cstring>

#include "tests/parallel/training_steps.h"

namespace shardtune::parallel {
namespace {

void require(bool condition, const char* what) {
  if (!condition)
    throw ArgumentError(std::string("check failed: ") + what);
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
  std::vector<int> values(count, comm.rank());
  comm.broadcast(std::as_writable_bytes(std::span(values)), n - 1, DType::kInt32);
  require(values == std::vector<int>(count, n - 1), "broadcast");
  require(comm.all_reduce_sum(comm.rank()) == n * (n - 1) / 2, "all_reduce_sum");
  const auto hosts = comm.all_gather_strings(comm.host_name());
  require(std::ranges::count(hosts, comm.host_name()) == comm.local_size(), "local_size");
  require(comm.local_rank() < comm.local_size(), "local_rank");
  check_same_on_all_ranks(comm, "build", "same");
  try {
    check_same_on_all_ranks(comm, "build", comm.rank() == n - 1 ? "other" : "same");
    require(n == 1, "a difference must be found");
  } catch (const RankMismatchError&) {
    require(n > 1, "one rank cannot differ");
  }
}

void check_bits(Communicator& comm) {
  const std::vector<int64_t> steps{5, 1, 4, 7};
  const auto single = make_single_communicator();
  const RunResult expected = TrainingSteps(*single, ZeroStage::k0).run(steps);
  for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2, ZeroStage::k3})
    require(TrainingSteps(comm, stage).run(steps) == expected, "bits of one rank");
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
  comm.barrier();
  if (comm.rank() == 0)
    std::printf("all checks passed on %d %s ranks\n", comm.world_size(),
                std::string(comm.backend()).c_str());
  return 0;
}

}  // namespace
}  // namespace shardtune::parallel

int main(int argc, char** argv) {
  if (argc != 2)
    return 64;
  const auto comm = shardtune::parallel::make_communicator();
  try {
    return shardtune::parallel::run(*comm, argv[1]);
  } catch (const shardtune::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    comm->abort(static_cast<int>(error.exit_code()));
    return static_cast<int>(error.exit_code());
  }
}
