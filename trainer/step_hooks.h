// Hook (6) after an optimizer step: what an adapter does with weights that were just updated.
#pragma once

#include <cstdint>

#include "models/hooks.h"
#include "parallel/communicator.h"
#include "parallel/sharded_store.h"

namespace shardtune::trainer {

/// Hooks::after_optimizer_step over this rank's ranges, before they are published. Collective.
void run_step_hooks(parallel::ShardedParameterStore& store, parallel::Communicator& comm,
                    models::Hooks& hooks, int64_t step);

}  // namespace shardtune::trainer
