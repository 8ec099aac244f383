// What bringing units costs with nothing computed in between: the walk of a micro-batch of a real
// configuration (stage 3, reads of offload_param), every unit leased and let go at once. The
// comm-only term of the overlap formula (PERFORMANCE section 2).
//   mpirun -n N build/release/bench/parallel/walk_bench CONFIG.yaml [WALKS]
// Prints one JSON line on rank 0: seconds per walk (the slowest rank's), rank 0's processor time of
// the prefetch thread, and the bytes that a walk brought to it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "parallel/communicator.h"
#include "trainer/config.h"
#include "trainer/job.h"

namespace {

using namespace shardtune;

void walk(trainer::Job& job) {
  const std::vector<UnitId> units = job.objective->train_walk(*job.model);
  job.store->begin_walk(units);
  UnitId before = kFetchRows;
  for (const UnitId unit : units) {
    if (unit == kFetchRows)
      job.store->fetch_rows({});
    else if (unit != before)  // the walk takes it as one visit
      const UnitLease lease = job.store->acquire(unit, Pass::kForward);
    before = unit;
  }
  job.store->end_walk();
}

int run(parallel::Communicator& comm, const char* path, int num_walks) {
  const trainer::RunConfig config = trainer::load_config(path, {});
  if (config.parallel.threads > 0)
    set_num_threads(static_cast<int>(config.parallel.threads));
  trainer::Job job(config, comm);
  trainer::check_inputs(job);
  trainer::agree_on_base(job);
  trainer::load(job);

  std::vector<double> seconds;
  double cpu_seconds = 0.0;
  parallel::StoreTraffic moved;
  for (int i = -1; i < num_walks; ++i) {  // the first one warms up
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    const double before = job.store->background_cpu_seconds();
    const parallel::StoreTraffic before_traffic = job.store->traffic();
    walk(job);
    comm.barrier();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    moved = job.store->traffic() - before_traffic;
    if (i < 0)
      continue;
    seconds.push_back(elapsed.count());
    cpu_seconds += job.store->background_cpu_seconds() - before;
  }
  std::ranges::sort(seconds);
  if (comm.rank() == 0)
    std::printf(
        "{\"walks\": %d, \"median_ms\": %.3f, \"least_ms\": %.3f, \"most_ms\": %.3f, "
        "\"prefetch_cpu_ms\": %.3f, \"received_bytes\": %lld, \"read_bytes\": %lld}\n",
        num_walks, seconds[seconds.size() / 2] * 1e3, seconds.front() * 1e3, seconds.back() * 1e3,
        cpu_seconds / num_walks * 1e3, static_cast<long long>(moved.units.received),
        static_cast<long long>(moved.units_read));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: walk_bench CONFIG.yaml [WALKS]\n");
    return 64;
  }
  const auto comm = parallel::make_mpi_communicator();
  try {
    return run(*comm, argv[1], argc > 2 ? std::max(std::atoi(argv[2]), 1) : 9);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    comm->abort(static_cast<int>(error.exit_code()));
    return static_cast<int>(error.exit_code());
  }
}
