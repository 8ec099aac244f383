// Where a run starts: which checkpoint, if any, and whether it belongs to this configuration.
#pragma once

#include <filesystem>
#include <optional>

#include "trainer/checkpoint.h"
#include "trainer/job.h"
#include "trainer/run_folder.h"
#include "trainer/train.h"

namespace shardtune::trainer {

/// The checkpoint to go on from, nullopt to start from the beginning. Cleans up after dead runs.
/// Collective.
/// Errors  ConfigError: a key that matters differs, each one named; DataError: damaged (kPath), or
///         no checkpoint is whole (kAuto)
std::optional<Checkpoint> choose_start(const Job& job, RunFolder& folder,
                                       const TrainOptions& options);

/// ConfigError naming every key that differs. A line each.
void check_same_run(const Checkpoint& checkpoint, const fs::path& folder, const RunConfig& config,
                    const std::string& base_sha256);

/// Puts weights, optimizer states and hook state back. Collective.
void restore(Job& job, const Checkpoint& checkpoint);

}  // namespace shardtune::trainer
