// Work where an error on one rank becomes the same error on every rank:
// parallel/collective_errors.h and, for what rank 0 does alone, this.
#pragma once

#include <functional>
#include <string>

#include "parallel/collective_errors.h"

namespace shardtune::trainer {

using parallel::run_on_all_ranks;

/// Runs body on rank 0 and gives its text to every rank. Collective.
/// Errors  AgreedError: what body threw, with its exit code and message, on every rank
std::string run_on_rank_zero(parallel::Communicator& comm,
                             const std::function<std::string()>& body);

}  // namespace shardtune::trainer
