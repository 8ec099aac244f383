// Choices that fit a machine: the cheapest for a run, and what to change in one that does not fit.
// Each is checked by the same walk as the run itself.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/memory_plan.h"

namespace shardtune::trainer {

/// Free bytes where swap files go.
struct SwapSpace {
  int64_t base = INT64_MAX;    // nvme_path of offload_param
  int64_t states = INT64_MAX;  // of offload_optimizer
  bool is_one_disk = false;    // both on one file system
};

/// Ranks that share one host's memory, and its bytes (core/topology.h).
struct HostLimit {
  int ranks = 1;
  int64_t bytes = 0;
  SwapSpace swap = {};
};

inline bool fits_memory(const RunPlan& plan, const HostLimit& host) {
  return plan.host_bytes(host.ranks) <= host.bytes;
}
bool fits_swap(const RunPlan& plan, const HostLimit& host);
inline bool fits(const RunPlan& plan, const HostLimit& host) {
  return fits_memory(plan, host) && fits_swap(plan, host);
}

using PlanFunction = std::function<RunPlan(const PlanChoice& choice)>;
/// plan_run() of a job that remembers what it answered. The job must outlive it.
PlanFunction plan_function(const Job& job, const RankPlacement& placement,
                           const ProcessBytes& process);

/// The cheapest choice of stage, gradient_checkpointing and micro_batch_size (the configured one or
/// smaller) that fits: without recompute before with it (a third more work), then by traffic, then
/// near the configured one.
std::optional<RunPlan> cheapest_that_fits(const PlanFunction& plan, const PlanChoice& configured,
                                          const HostLimit& host);

struct Suggestion {
  std::string options;  // "--set training.gradient_checkpointing=true"
  RunPlan plan;
};
/// Up to three different changes with which the run fits, fewest keys first; none when not even all
/// of them together suffice.
std::vector<Suggestion> suggest(const PlanFunction& plan, const PlanChoice& configured,
                                const HostLimit& host);

}  // namespace shardtune::trainer
