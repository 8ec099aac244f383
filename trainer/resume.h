// Where a run starts: which checkpoint, if any, and whether it belongs to this configuration.
#pragma once

#include <filesystem>
#include <memory>

#include "trainer/checkpoint_reader.h"
#include "trainer/job.h"
#include "trainer/run_folder.h"
#include "trainer/train.h"

namespace shardtune::trainer {

/// The checkpoint to go on from, null to start from the beginning. Rank 0 verifies it whole and
/// cleans up after dead runs; the others open it. Collective.
/// Errors  ConfigError: a key that matters differs, each one named; DataError: damaged (kPath), or
///         no checkpoint is whole (kAuto)
std::unique_ptr<CheckpointReader> choose_start(const Job& job, RunFolder& folder,
                                               const TrainOptions& options);

/// ConfigError naming every key that differs. A line each.
void check_same_run(const CheckpointState& checkpoint, const fs::path& folder,
                    const RunConfig& config, const std::string& base_sha256);

/// Puts weights, optimizer states and hook state back. A rank reads the ranges that it updates; at
/// stage 0, where that is everything, those that it would update at stage 1, and the ranks give
/// them to each other. Collective.
/// Errors  DataError: a tensor missing, unknown or of another shape, or damaged since
void restore(Job& job, CheckpointReader& checkpoint);

}  // namespace shardtune::trainer
