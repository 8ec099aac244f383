// The memory, traffic and disk of a run before it starts: the run's own code is walked in a dry run
// (core/dry_run.h) over the longest micro-batches of the data plan, on a store that counts what a
// rank holds. Weights are never read: config, file headers and the tokenised data say everything.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/dry_run.h"
#include "parallel/planned_store.h"
#include "trainer/job.h"
#include "trainer/step_traffic.h"

namespace shardtune::trainer {

/// What may be changed so that a run fits. Results stay bit-identical under another stage and
/// gradient_checkpointing, not under the rest.
struct PlanChoice {
  parallel::ZeroStage stage = parallel::ZeroStage::k0;
  bool gradient_checkpointing = false;
  int64_t micro_batch_size = 1;
  int64_t max_length = 1024;
  quant::QuantizationOptions quantization;
  parallel::FrozenPlace base = parallel::FrozenPlace::kMemory;  // kHost: share_base_per_host
  int64_t shortest_length = 64;                                 // max_length is not lowered below

  /// This choice at another stage; at stage 3 no host has a whole base to share.
  PlanChoice at_stage(parallel::ZeroStage other) const;
};
PlanChoice configured_choice(const RunConfig& config);

/// Ranks fill hosts in order, as mpirun fills slots.
struct RankPlacement {
  int ranks = 1;
  int ranks_of_host = 1;      // the last host may have fewer
  bool shares_memory = true;  // ranks of a host can open each other's memory

  /// Where a choice has frozen bytes: at stage 3 the ranks of the only host map each other's.
  parallel::FrozenPlace place_of(const PlanChoice& choice) const;
};

/// Memory of the process apart from what the walk counts, measured in this process.
struct ProcessBytes {
  int64_t program = 0;    // binary, libraries, their threads and compiled products
  int64_t inputs = 0;     // tokenizer, records, samples, file headers
  int64_t transport = 0;  // MPI's buffers; MPI itself where this process has not started it
};

struct MemoryRow {
  std::string name;
  int64_t bytes = 0;
};

/// Bytes of a rank's swap files.
struct SwapBytes {
  int64_t base = 0;    // offload_param
  int64_t states = 0;  // offload_optimizer
};

struct RunPlan {
  PlanChoice choice;
  int ranks = 1;
  std::vector<MemoryRow> rows;   // of rank 0; their sum is run_bytes
  int64_t run_bytes = 0;         // most while training and saving
  int64_t load_bytes = 0;        // most while loading
  int64_t first_rank_bytes = 0;  // rank 0, which writes checkpoints: the larger of both
  int64_t other_rank_bytes = 0;  // any other rank
  int64_t shared_bytes = 0;      // of each rank's, what the ranks of a host hold once together
  int64_t pool_bytes = 0;        // of the buffer pool, as BufferPool::peak_bytes_in_use counts

  int64_t longest_tokens = 0;  // of the longest micro-batch
  int64_t micro_batches_per_step = 0;
  StepTraffic step_traffic;              // of rank 0 in the step with the most micro-batches
  int64_t host_sent_bytes_per_step = 0;  // of the first host to other hosts
  int64_t checkpoint_bytes = 0;
  int64_t num_checkpoints = 0;  // on disk at most
  int64_t disk_bytes = 0;       // checkpoints and the adapter
  std::vector<SwapBytes> swap;  // by rank; zeros without offload

  /// All ranks of one host, rank 0 among them.
  int64_t host_bytes(int ranks_of_host) const {
    return first_rank_bytes + (ranks_of_host - 1) * (other_rank_bytes - shared_bytes);
  }
  /// Of all ranks of one host; where hosts hold a part of the ranks, the most that it can be.
  SwapBytes host_swap(int ranks_of_host) const;
};

/// The plan of a job after check_inputs() on these ranks. Local; a fraction of a second.
/// Errors  those of load_model and attach; ConfigError: an adapter that fits no layer
RunPlan plan_run(const Job& job, const PlanChoice& choice, const RankPlacement& placement,
                 const ProcessBytes& process);

/// What this process holds now, and of it what came since `before_inputs` (resident_bytes() before
/// check_inputs); adds what comes later, and MPI's share with several ranks. Walks once, so that
/// the products of the run are compiled and counted.
ProcessBytes measure_process(const Job& job, int64_t before_inputs, const RankPlacement& placement);

}  // namespace shardtune::trainer
