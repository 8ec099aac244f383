#include "trainer/resume.h"

#include <algorithm>
#include <map>

#include "core/log.h"
#include "trainer/collective.h"
#include "trainer/int8_compute.h"

namespace shardtune::trainer {
namespace {

/// Path of the checkpoint, "" for a start from the beginning. Rank 0.
std::string find_start(RunFolder& folder, const TrainOptions& options) {
  remove_stale_partials(folder.path());
  if (options.resume == ResumeMode::kPath) {
    verify_folder(options.resume_path);
    return options.resume_path;
  }
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

/// Every tensor that the run has, and no other adapter tensor. The same on all ranks.
void check_tensors(const Job& job, const CheckpointReader& checkpoint) {
  const std::vector<ParameterId> trainables = job.store->trainables();
  const size_t found = checkpoint.adapter().tensors().size();
  if (found != trainables.size()) {
    throw DataError("checkpoint: expected " + std::to_string(trainables.size()) +
                    " adapter tensors, found " + std::to_string(found) +
                    ". Use the configuration the checkpoint was made with.");
  }
  for (const ParameterId id : trainables) {
    const ParameterSpec& spec = job.store->spec(id);
    checkpoint.adapter().check(spec.name, spec.shape);
    for (const std::string& state : job.states->tensor_names(id))
      checkpoint.optimizer().check(state, spec.shape);
  }
}

/// Reading where every rank needs every element: each range is read by the rank that would own it
/// at stage 1, and given to the others.
class ReadForAll {
 public:
  explicit ReadForAll(const Job& job) : comm_(job.comm) {
    for (int rank = 0; rank < comm_.world_size(); ++rank) {
      for (const parallel::ShardRange& range : job.store->layout().ranges(rank))
        parts_.push_back({rank, range});
    }
  }

  /// Collective.
  void read(CheckpointTensors& tensors, ParameterId id, const std::string& name, int64_t begin,
            std::span<float> values) const {
    const int64_t end = begin + static_cast<int64_t>(values.size());
    for (const Part& part : parts_) {
      const int64_t from = std::max(begin, part.range.begin);
      const int64_t to = std::min(end, part.range.end);
      if (part.range.id != id || from >= to)
        continue;
      const std::span<float> own =
          values.subspan(static_cast<size_t>(from - begin), static_cast<size_t>(to - from));
      run_on_all_ranks(comm_, [&] {
        if (part.rank == comm_.rank())
          tensors.read(name, from, own);
      });
      comm_.broadcast(std::as_writable_bytes(own), part.rank, DType::kFloat32);
    }
  }

 private:
  struct Part {
    int rank = 0;
    parallel::ShardRange range;
  };
  parallel::Communicator& comm_;
  std::vector<Part> parts_;
};

/// How a rank gets at the elements of one file.
ElementReader reader_of(CheckpointTensors& tensors, const ReadForAll* for_all) {
  return [&tensors, for_all](ParameterId id, const std::string& name, int64_t begin,
                             std::span<float> values) {
    if (for_all != nullptr)
      for_all->read(tensors, id, name, begin, values);
    else
      tensors.read(name, begin, values);
  };
}

}  // namespace

void check_same_run(const CheckpointState& checkpoint, const fs::path& folder,
                    const RunConfig& config, const std::string& base_sha256) {
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

std::unique_ptr<CheckpointReader> choose_start(const Job& job, RunFolder& folder,
                                               const TrainOptions& options) {
  const std::string path = run_on_rank_zero(job.comm, [&] { return find_start(folder, options); });
  if (path.empty()) {
    log_info("starting from the beginning");
    return nullptr;
  }
  std::unique_ptr<CheckpointReader> checkpoint;
  run_on_all_ranks(job.comm, [&] { checkpoint = std::make_unique<CheckpointReader>(path); });
  parallel::check_same_on_all_ranks(job.comm, "manifest of " + path, checkpoint->digest());
  const CheckpointState& state = checkpoint->state();
  check_same_run(state, path, job.config, job.base_sha256);
  if (state.identity != options.identity) {
    log_warning(path + " was written by another version or on another instruction set (" +
                state.identity + "); equal bits are not promised");
  }
  log_info("resuming from " + path + " after step " + std::to_string(state.step));
  return checkpoint;
}

void restore(Job& job, CheckpointReader& checkpoint) {
  check_tensors(job, checkpoint);
  const auto fill = [&](const ReadForAll* for_all) {
    restore_trainables(*job.store, reader_of(checkpoint.adapter(), for_all));
    job.states->restore(reader_of(checkpoint.optimizer(), for_all));
  };
  if (job.store->stage() == parallel::ZeroStage::k0 && job.comm.world_size() > 1) {
    const ReadForAll for_all(job);
    fill(&for_all);
  } else {
    run_on_all_ranks(job.comm, [&] { fill(nullptr); });
  }
  job.store->publish_updates();
  job.adapter->renew_base();
  job.adapter->load_named_state(without_int8_states(checkpoint.state().hook_state));
}

}  // namespace shardtune::trainer
