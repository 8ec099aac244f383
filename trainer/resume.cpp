#include "trainer/resume.h"

#include <map>

#include "core/log.h"
#include "trainer/collective.h"

namespace shardtune::trainer {
namespace {

/// Path of the checkpoint, "" for a start from the beginning. Rank 0.
std::string find_start(RunFolder& folder, const TrainOptions& options) {
  remove_stale_partials(folder.path());
  if (options.resume == ResumeMode::kPath)
    return options.resume_path;
  if (options.resume == ResumeMode::kNever) {
    const fs::path previous = folder.set_aside_previous_run();
    if (!previous.empty())
      log_info("the earlier run in " + folder.path().string() + " was moved to " +
               previous.string());
    return "";
  }
  const auto newest = find_newest_checkpoint(folder.path());
  return newest ? newest->string() : "";
}

}  // namespace

void check_same_run(const Checkpoint& checkpoint, const fs::path& folder, const RunConfig& config,
                    const std::string& base_sha256) {
  const std::map<std::string, std::string> saved(checkpoint.config.begin(),
                                                 checkpoint.config.end());
  std::map<std::string, std::string> now;
  for (auto& [key, value] : resume_keys(config))
    now.emplace(key, value);
  std::string problems;
  const auto differs = [&](const std::string& key, const std::string& was, const std::string& is) {
    problems += (problems.empty() ? "" : "\n") + key + ": expected " + was + " (as in " +
                folder.string() + "), found " + is + ".";
  };
  for (const auto& [key, value] : now) {
    const auto it = saved.find(key);
    if (it == saved.end())
      differs(key, "no such key", value);
    else if (it->second != value)
      differs(key, it->second, value);
  }
  for (const auto& [key, value] : saved) {
    if (!now.contains(key))
      differs(key, value, "no such key");
  }
  if (!problems.empty()) {
    throw ConfigError(problems +
                      "\nA resume needs the configuration of the checkpoint. Change it back, use "
                      "another checkpoint.output_dir, or start over with --resume never.");
  }
  if (checkpoint.base_sha256 != base_sha256) {
    throw ConfigError("model.model_name_or_path: " + config.model.model_name_or_path +
                      ": expected the weights that " + folder.string() + " was trained on (" +
                      checkpoint.base_sha256.substr(0, 16) + "), found others (" +
                      base_sha256.substr(0, 16) +
                      "). Use the same model, or start over with --resume never.");
  }
}

std::optional<Checkpoint> choose_start(const Job& job, RunFolder& folder,
                                       const TrainOptions& options) {
  const std::string path = run_on_rank_zero(job.comm, [&] { return find_start(folder, options); });
  if (path.empty()) {
    log_info("starting from the beginning");
    return std::nullopt;
  }
  Checkpoint checkpoint = read_checkpoint(path);
  check_same_run(checkpoint, path, job.config, job.base_sha256);
  if (checkpoint.identity != options.identity) {
    log_warning(path + " was written by another version or on another instruction set (" +
                checkpoint.identity + "); equal bits are not promised");
  }
  log_info("resuming from " + path + " after step " + std::to_string(checkpoint.step));
  return checkpoint;
}

void restore(Job& job, const Checkpoint& checkpoint) {
  restore_trainables(*job.store, checkpoint.adapter);
  job.states->restore(checkpoint.optimizer);
  job.adapter->load_named_state(checkpoint.hook_state);
}

}  // namespace shardtune::trainer
