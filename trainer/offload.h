// Where offload puts things: the swap files of a run, checked before anything is loaded.
#pragma once

#include "trainer/job.h"
#include "trainer/plan_search.h"

namespace shardtune::trainer {

/// Makes and drops a small swap file in every nvme_path, so that a folder that cannot serve is told
/// before loading. Local. Errors  ConfigError: no such folder; WriteError: not writable or full
void check_offload(const Job& job);

/// What is free in every nvme_path of the configuration. Local.
SwapSpace free_swap_space(const RunConfig& config);
/// WriteError: the swap files of this host's ranks will not fit.
void require_swap_space(const RunConfig& config, const RunPlan& plan, const HostLimit& host);

/// job.base_file where offload_param wants it, measured before anything is stored. Collective.
void open_base_file(Job& job);
/// After loading: what it holds.
void log_base_file(const Job& job);

/// job.states: zero states where offload_optimizer wants them. Takes the space in the file and
/// measures it first. Collective.
void make_optimizer_states(Job& job);

}  // namespace shardtune::trainer
