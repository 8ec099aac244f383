// The collectives of a Communicator beside OpenMPI's own, in turns in one run (PERFORMANCE B12):
//   mpirun -n 2 build/release/bench/parallel/collectives_bench [LARGEST_MIB]
// Bytes and GB/s as nccl-tests count them: bytes are what one rank holds of the whole (all_gather:
// its output; reduce_scatter and exchange: its input), GB/s are bus rates, bytes / time x (N-1)/N
// (broadcast: bytes / time). An exchange carries a reduce-scatter of gradients: each rank sends
// each other rank its part; OpenMPI's reduce_scatter also adds, so Isend/Irecv of the same messages
// stands beside it. Ours compare the call's header over ranks first, which OpenMPI does not.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace {

using shardtune::parallel::Communicator;
using shardtune::parallel::Receive;
using shardtune::parallel::Send;
using Call = std::function<void()>;

constexpr int kRounds = 9;

struct Buffers {
  std::vector<std::byte> in;
  std::vector<std::byte> out;
};

/// Seconds of one call, the slowest rank's, over `repeats` calls in a row.
double seconds_of(const Call& call, int repeats) {
  MPI_Barrier(MPI_COMM_WORLD);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i)
    call();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  double slowest = elapsed.count() / repeats;
  MPI_Allreduce(MPI_IN_PLACE, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return slowest;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Median seconds of each side, the sides in turns.
std::vector<double> measure(const std::vector<Call>& sides, size_t bytes) {
  const int repeats = static_cast<int>(
      std::clamp<size_t>((size_t{32} << 20) / std::max<size_t>(bytes, 1), 2, 1000));
  std::vector<std::vector<double>> seconds(sides.size());
  for (int round = -1; round < kRounds; ++round) {
    for (size_t side = 0; side < sides.size(); ++side) {
      const double one = seconds_of(sides[side], repeats);
      if (round >= 0)  // the first round warms up
        seconds[side].push_back(one);
    }
  }
  std::vector<double> result;
  for (const auto& values : seconds)
    result.push_back(median(values));
  return result;
}

std::string size_text(size_t bytes) {
  if (bytes >= size_t{1} << 20)
    return std::to_string(bytes >> 20) + " MiB";
  return std::to_string(bytes >> 10) + " KiB";
}

void print_row(Communicator& comm, const char* name, size_t bytes, double bus_factor,
               const std::vector<double>& seconds) {
  if (comm.rank() != 0)
    return;
  const auto rate = [&](double s) { return static_cast<double>(bytes) * bus_factor / s * 1e-9; };
  std::printf("| %s | %d | %s | %.1f | %.1f | %.2f | %.2f | %.2f |", name, comm.world_size(),
              size_text(bytes).c_str(), seconds[0] * 1e6, seconds[1] * 1e6, rate(seconds[0]),
              rate(seconds[1]), seconds[1] / seconds[0]);
  if (seconds.size() > 2)
    std::printf(" %.2f | %.2f |\n", rate(seconds[2]), seconds[2] / seconds[0]);
  else
    std::printf(" | |\n");
  std::fflush(stdout);
}

void bench_all_gather(Communicator& comm, Buffers& buffers, size_t bytes) {
  const auto n = static_cast<size_t>(comm.world_size());
  const std::span<const std::byte> in(buffers.in.data(), bytes / n);
  const std::span<std::byte> out(buffers.out.data(), bytes / n * n);
  const int count = static_cast<int>(in.size());
  print_row(comm, "all_gather", bytes, 1.0 - 1.0 / static_cast<double>(n),
            measure({[&] { comm.all_gather(in, out); },
                     [&] {
                       MPI_Allgather(in.data(), count, MPI_BYTE, out.data(), count, MPI_BYTE,
                                     MPI_COMM_WORLD);
                     }},
                    bytes));
}

void bench_broadcast(Communicator& comm, Buffers& buffers, size_t bytes) {
  const std::span<std::byte> out(buffers.out.data(), bytes);
  print_row(comm, "broadcast", bytes, 1.0,
            measure({[&] { comm.broadcast(out, 0); },
                     [&] {
                       MPI_Bcast(out.data(), static_cast<int>(bytes), MPI_BYTE, 0, MPI_COMM_WORLD);
                     }},
                    bytes));
}

void bench_exchange(Communicator& comm, Buffers& buffers, size_t bytes) {
  const auto n = static_cast<size_t>(comm.world_size());
  const size_t part = bytes / n / sizeof(float) * sizeof(float);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (size_t peer = 0; peer < n; ++peer) {
    if (static_cast<int>(peer) == comm.rank())
      continue;
    sends.push_back({static_cast<int>(peer), {buffers.in.data() + peer * part, part}});
    receives.push_back({static_cast<int>(peer), {buffers.out.data() + peer * part, part}});
  }
  const auto messages = [&] {
    std::vector<MPI_Request> requests;
    const int count = static_cast<int>(part);
    for (const Receive& receive : receives)
      MPI_Irecv(receive.bytes.data(), count, MPI_BYTE, receive.peer, 0, MPI_COMM_WORLD,
                &requests.emplace_back());
    for (const Send& send : sends)
      MPI_Isend(send.bytes.data(), count, MPI_BYTE, send.peer, 0, MPI_COMM_WORLD,
                &requests.emplace_back());
    MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  };
  const auto reduce_scatter = [&] {
    MPI_Reduce_scatter_block(buffers.in.data(), buffers.out.data(),
                             static_cast<int>(part / sizeof(float)), MPI_FLOAT, MPI_SUM,
                             MPI_COMM_WORLD);
  };
  print_row(comm, "exchange", bytes, 1.0 - 1.0 / static_cast<double>(n),
            measure({[&] { comm.exchange(sends, receives); }, messages, reduce_scatter}, bytes));
}

}  // namespace

int main(int argc, char** argv) {
  const auto comm = shardtune::parallel::make_communicator();
  const size_t largest = (argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 256) << 20;
  Buffers buffers{std::vector<std::byte>(largest, std::byte{1}),
                  std::vector<std::byte>(largest, std::byte{2})};
  if (comm->rank() == 0)
    std::printf(
        "| call (%s) | N | bytes | ours us | OpenMPI us | ours GB/s | OpenMPI GB/s | ratio "
        "| reduce_scatter GB/s | ratio |\n|---|---|---|---|---|---|---|---|---|---|\n",
        std::string(comm->backend()).c_str());
  for (const auto bench : {bench_all_gather, bench_broadcast, bench_exchange}) {
    for (size_t bytes = 1024; bytes <= largest; bytes *= 4)
      bench(*comm, buffers, bytes);
  }
  return 0;
}
