// What a checkpoint in low bits costs: the loss on a sample of the data before and after.
#pragma once

#include <optional>
#include <string>

#include "data/dataset.h"
#include "io/json.h"
#include "launch/session.h"

namespace shardtune::launch {

/// Records that a loss is measured on, at most.
inline constexpr int64_t kLossSample = 64;

/// The first records of a file: `data`, or where that is empty the training data that the adapter's
/// run names (resolved_config.yaml beside the adapter folder). Nothing, with a warning that says
/// why, where there is none to be had.
/// Errors  those of reading `data`
std::optional<data::Dataset> loss_sample(const ModelArguments& arguments, const std::string& data,
                                         const data::Tokenizer& tokenizer, int64_t context);

/// Measures both models on the sample, warns of what was lost, and returns it for the report.
io::Json loss_before_and_after(const data::Dataset& sample, const Session& before,
                               models::Model& after);

}  // namespace shardtune::launch
