// compute_dtype int8 in a run: the samples that its scales are chosen by, what is told about the
// error, and the scales in checkpoints.
#pragma once

#include <vector>

#include "models/int8_linears.h"
#include "trainer/checkpoint.h"
#include "trainer/job.h"

namespace shardtune::trainer {

inline constexpr int64_t kCalibrationTokens = 1024;

/// The first samples in order of the files, together up to kCalibrationTokens, at least one:
/// the same on every rank and whatever seed orders them.
data::MicroBatchPlan calibration_samples(const std::vector<data::Sample>& samples);

/// After load(): sets the scales, by the first samples or as the checkpoint has them, and logs the
/// error of each linear. Nothing unless the configuration asks for int8. Collective.
void prepare_int8(Job& job, const CheckpointState* saved);

/// What a checkpoint keeps of it; empty without int8.
std::vector<models::NamedState> int8_states(models::Model& model);
/// The states of a checkpoint that are the adapter's own.
std::vector<models::NamedState> without_int8_states(const std::vector<models::NamedState>& states);

}  // namespace shardtune::trainer
