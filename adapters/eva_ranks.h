// Ranks that EVA gives to linears by their inputs: with rho > 1 all linears together keep the ranks
// that were asked for, and those go, largest first, to the directions that explain most of their
// linear's inputs, at most rho times its rank to one linear; one without any gets no adapter. As
// PEFT's initialize_lora_eva_weights does, but that no linear gets more than its narrow side has.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/lora_options.h"

namespace shardtune::adapters {

/// Shares out `budget` directions: per linear how many it gets. `ratios`: per linear, falling;
/// among equals the first linear counts.
std::vector<int64_t> share_ranks(const std::vector<std::vector<double>>& ratios, int64_t budget);

/// The options with the ranks and directions of a sample of the data. Collective; null in a dry
/// run. Errors  as eva_directions()
std::optional<LoraOptions> eva_fitted_to_data(const LoraOptions& options, models::Model& model,
                                              const InitContext& context);
/// The options with the ranks that need the most memory, for a plan.
LoraOptions eva_with_most_bytes(const LoraOptions& options, models::Model& model);

/// A run's ranks for its checkpoints, none without them, and back.
std::vector<models::NamedState> eva_states(const LoraOptions& options, models::Model& model);
/// Errors  DataError: none, or not ranks that these options can have
LoraOptions eva_fitted_as(const LoraOptions& options, models::Model& model,
                          const std::vector<models::NamedState>& states);

}  // namespace shardtune::adapters
