// Work where an error on one rank becomes the same error on every rank, so that nobody is left
// waiting in a collective.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.h"

namespace shardtune::trainer {

/// Runs body on rank 0 and gives its text to every rank. Collective.
/// Errors  what body threw, with its exit code and message, on every rank
std::string run_on_rank_zero(parallel::Communicator& comm,
                             const std::function<std::string()>& body);

/// Runs body, which calls no collective, on every rank. Collective.
/// Errors  that of the lowest rank that has one, naming the rank, on every rank
void run_on_all_ranks(parallel::Communicator& comm, const std::function<void()>& body);

}  // namespace shardtune::trainer
