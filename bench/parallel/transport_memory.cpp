// What ranks on one machine hold for talking to each other, as `plan` takes it
// (trainer/memory_plan.cpp): resident bytes of each rank before MPI, after its start, and after
// exchanges with every peer.
//   mpirun -n N build/release/bench/parallel/transport_memory
#include <algorithm>
#include <cstdio>
#include <vector>

#include "parallel/communicator.h"
#include "trainer/memory.h"

namespace {

using namespace shardtune;

/// Exchanges of `bytes` with every peer and a gather of as many, a few times.
void talk(parallel::Communicator& comm, std::vector<std::byte>& buffer, size_t bytes) {
  const auto n = static_cast<size_t>(comm.world_size());
  std::vector<parallel::Send> sends;
  std::vector<parallel::Receive> receives;
  for (size_t peer = 0; peer < n; ++peer) {
    if (static_cast<int>(peer) == comm.rank())
      continue;
    sends.push_back({static_cast<int>(peer), {buffer.data(), bytes}});
    receives.push_back({static_cast<int>(peer), {buffer.data() + (1 + peer) * bytes, bytes}});
  }
  for (int i = 0; i < 3; ++i) {
    comm.exchange(sends, receives);
    comm.all_gather({buffer.data(), bytes}, {buffer.data() + bytes, n * bytes});
    comm.broadcast({buffer.data(), bytes}, 0);
  }
}

}  // namespace

int main() {
  const int64_t before = trainer::resident_bytes();
  const auto comm = parallel::make_communicator();
  const int64_t started = trainer::resident_bytes();
  constexpr size_t kBytes = 1 << 20;
  std::vector<std::byte> buffer((1 + static_cast<size_t>(comm->world_size())) * kBytes,
                                std::byte{1});
  const int64_t with_buffer = trainer::resident_bytes();
  talk(*comm, buffer, kBytes);
  const int64_t talked = trainer::resident_bytes();
  const auto start = comm->all_gather_value(started - before);
  const auto talked_bytes = comm->all_gather_value(talked - with_buffer);
  if (comm->rank() == 0) {
    const auto mebibytes = [](const std::vector<int64_t>& values) {
      return static_cast<double>(*std::ranges::max_element(values)) / (1 << 20);
    };
    std::printf("%s, %d ranks: start %.1f MiB, exchanges %.1f MiB, %.2f MiB a peer\n",
                std::string(comm->backend()).c_str(), comm->world_size(), mebibytes(start),
                mebibytes(talked_bytes),
                mebibytes(talked_bytes) / std::max(comm->world_size() - 1, 1));
  }
  return 0;
}
