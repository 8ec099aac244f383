// Work where an error on one rank becomes the same error on every rank, so that nobody is left
// waiting in a collective.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/error.h"
#include "parallel/communicator.h"

namespace shardtune::parallel {

/// Thrown by all ranks of a collective call together: their next calls still match.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// What body threw, or none; an exception that is no Error counts as kInternal.
std::optional<Error> error_of(const std::function<void()>& body);

/// Runs body, which calls no collective, on every rank. Collective.
/// Errors  AgreedError: that of the lowest rank that has one, naming the rank, on every rank
void run_on_all_ranks(Communicator& comm, const std::function<void()>& body);

}  // namespace shardtune::parallel
