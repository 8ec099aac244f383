// Rows of sharded tables, asked for by the ranks that need them and answered by the ranks that hold
// them.
#pragma once

#include <functional>
#include <span>

#include "core/parameter_store.h"
#include "parallel/communicator.h"

namespace shardtune::parallel {

struct RowPlaces {
  /// Rank that holds a row.
  std::function<int(ParameterId id, int32_t row)> owner;
  /// A row that this rank holds. ArgumentError: it does not.
  std::function<std::span<const std::byte>(ParameterId id, int32_t row)> bytes;
  /// kFallible: bytes() may fail on one rank alone, and all ranks are to throw its error.
  enum class Reading { kSafe, kFallible } reading = Reading::kSafe;
};

/// Fills `out` of every fetch. Collective: ranks that need nothing answer.
/// Errors  AgreedError with kFallible: what bytes() threw
void exchange_rows(Communicator& comm, std::span<const RowFetch> fetches, const RowPlaces& places);

}  // namespace shardtune::parallel
