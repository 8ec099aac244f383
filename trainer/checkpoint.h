// Checkpoints: folders checkpoint-<step> that hold the adapter's weights, the optimizer states and
// what a resume must agree on, in terms of whole tensors, so that any number of ranks and any stage
// loads them. The frozen base is named by its content hash. A folder is written under the name
// checkpoint-<step>.partial and renamed when everything in it is durable; no pointer file exists,
// the newest folder whose manifest verifies counts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/hooks.h"

namespace shardtune::trainer {

namespace fs = std::filesystem;

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

inline constexpr const char* kAdapterFile = "adapter.safetensors";
inline constexpr const char* kOptimizerFile = "optimizer.safetensors";
inline constexpr const char* kStateFile = "state.json";

/// What every rank knows of a checkpoint.
struct CheckpointState {
  int64_t step = 0;  // optimizer steps done
  uint64_t seed = 0;
  std::string config_sha256;
  std::string base_sha256;
  std::string identity;                                     // of the program that wrote it
  std::vector<std::pair<std::string, std::string>> config;  // resume_keys()
  std::vector<models::NamedState> hook_state;
};

/// A whole one, as rank 0 writes it; checkpoint_reader.h reads.
struct Checkpoint : CheckpointState {
  std::vector<NamedTensor> adapter;
  std::vector<NamedTensor> optimizer;  // "<tensor>.<state>"
};

/// Writes checkpoint-<step>.partial with its manifest; everything in it is durable on return, and
/// its tensors were read back and compared in shape and bytes. One rank calls it. Whatever the
/// error, nothing is left behind.
/// Errors  WriteError: not writable or disk full; ArgumentError: the adapter is all zeros, so
///         nothing was trained; CorruptBlockError: read back different
fs::path write_partial_checkpoint(const fs::path& output_dir, const Checkpoint& checkpoint);
/// Renames it to checkpoint-<step>. A folder of that name is moved aside first and removed after.
fs::path commit_checkpoint(const fs::path& output_dir, int64_t step);

/// Folders named checkpoint-<step> (no links), newest first.
std::vector<std::pair<int64_t, fs::path>> list_checkpoints(const fs::path& output_dir);

/// The newest folder that verifies; damaged ones are logged as warnings and passed over.
/// DataError: there are folders, but none is whole.
std::optional<fs::path> find_newest_checkpoint(const fs::path& output_dir);

/// Removes older checkpoints, so that `limit` stay with the one of `newest_step` (0 = keep all).
/// Only after that one was committed. Failures are warnings.
void rotate_checkpoints(const fs::path& output_dir, int64_t newest_step, int64_t limit);

/// Removes what a dead run left half-written or half-removed.
void remove_stale_partials(const fs::path& output_dir);

}  // namespace shardtune::trainer
