#include "trainer/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/log.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "trainer/manifest.h"

namespace shardtune::trainer {
namespace {

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kPartial = ".partial";    // being written
constexpr std::string_view kReplaced = ".replaced";  // moved aside until its successor is there
constexpr std::string_view kRemoved = ".removed";    // being removed

fs::path folder_of(const fs::path& output_dir, int64_t step) {
  return output_dir / (std::string(kPrefix) + std::to_string(step));
}
fs::path with_suffix(const fs::path& folder, std::string_view suffix) {
  return folder.string() + std::string(suffix);
}

/// The step of "checkpoint-<step><suffix>"; nullopt for any other name.
std::optional<int64_t> step_of(std::string_view name, std::string_view suffix) {
  if (name.size() <= kPrefix.size() + suffix.size() || name.substr(0, kPrefix.size()) != kPrefix ||
      name.substr(name.size() - suffix.size()) != suffix)
    return std::nullopt;
  const std::string_view digits =
      name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size());
  int64_t step = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size() || step < 0 ||
      std::to_string(step) != digits)
    return std::nullopt;
  return step;
}

std::vector<std::pair<int64_t, fs::path>> list_folders(const fs::path& output_dir,
                                                       std::string_view suffix) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code error;
  for (fs::directory_iterator it(output_dir, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code status_error;
    const auto step = step_of(it->path().filename().string(), suffix);
    if (step && fs::is_directory(it->symlink_status(status_error)))
      found.emplace_back(*step, it->path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

void write_tensors(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  std::vector<io::TensorToWrite> list;
  for (const NamedTensor& tensor : tensors) {
    list.push_back({tensor.name, "F32", tensor.shape,
                    [&tensor](const std::function<void(std::span<const std::byte>)>& sink) {
                      sink(std::as_bytes(std::span<const float>(tensor.values)));
                    }});
  }
  io::write_safetensors(path, std::move(list));
}

[[noreturn]] void throw_different(const fs::path& what) {
  throw CorruptBlockError(what.string() +
                          ": read back other bytes than were written; nothing was saved. Check "
                          "the disk.");
}

/// Before it is committed: the file holds these tensors with their shapes and bytes.
void compare_tensors(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  std::unique_ptr<io::TensorSource> source;
  try {
    source = io::open_safetensors(path);
  } catch (const DataError&) {
    throw_different(path);
  }
  for (const NamedTensor& tensor : tensors) {
    const io::TensorInfo* info = source->find(tensor.name);
    const auto written = std::as_bytes(std::span<const float>(tensor.values));
    const bool is_equal = info != nullptr && info->dtype == "F32" && info->shape == tensor.shape &&
                          std::ranges::equal(source->bytes(*info), written);
    if (!is_equal)
      throw_different(path.string() + ": " + tensor.name);
    source->drop(*info);
  }
}

/// An adapter of zeros only is a sign that nothing was trained.
void check_norm(const std::vector<NamedTensor>& adapter) {
  double square_sum = 0.0;
  for (const NamedTensor& tensor : adapter) {
    for (const float value : tensor.values)
      square_sum += static_cast<double>(value) * value;
  }
  if (!(square_sum > 0.0) || !std::isfinite(square_sum))
    throw ArgumentError("checkpoint: adapter: expected a norm above 0 and finite, found " +
                        std::to_string(std::sqrt(square_sum)) +
                        "; nothing was saved. Go on from an earlier checkpoint.");
}

std::string to_hex(const std::string& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const char c : bytes) {
    hex += kDigits[static_cast<uint8_t>(c) >> 4];
    hex += kDigits[static_cast<uint8_t>(c) & 15];
  }
  return hex;
}

std::string state_text(const Checkpoint& checkpoint) {
  io::Json config = io::Json::object();
  for (const auto& [key, value] : checkpoint.config)
    config.set(key, value);
  io::Json hooks = io::Json::object();
  for (const models::NamedState& state : checkpoint.hook_state)
    hooks.set(state.name, to_hex(state.bytes));
  io::Json json = io::Json::object();
  json.set("step", checkpoint.step);
  json.set("identity", checkpoint.identity);
  json.set("config", std::move(config));
  json.set("hook_state", std::move(hooks));
  return json.dump(2) + "\n";
}

int64_t bytes_of(const Checkpoint& checkpoint) {
  int64_t total = 1 << 20;  // headers, state and manifest
  for (const models::NamedState& state : checkpoint.hook_state)
    total += static_cast<int64_t>(2 * state.bytes.size() + 256);  // hexadecimal
  for (const auto* list : {&checkpoint.adapter, &checkpoint.optimizer}) {
    for (const NamedTensor& tensor : *list)
      total += static_cast<int64_t>(tensor.values.size() * sizeof(float)) + 256;
  }
  return total;
}

void write_files(const fs::path& partial, const Checkpoint& checkpoint) {
  check_norm(checkpoint.adapter);
  io::create_folders(partial);
  write_tensors(partial / kAdapterFile, checkpoint.adapter);
  compare_tensors(partial / kAdapterFile, checkpoint.adapter);
  write_tensors(partial / kOptimizerFile, checkpoint.optimizer);
  compare_tensors(partial / kOptimizerFile, checkpoint.optimizer);
  {
    const std::string text = state_text(checkpoint);
    io::FileWriter writer(partial / kStateFile);
    writer.write(text);
    writer.commit();
    if (io::read_text_file(partial / kStateFile, static_cast<int64_t>(text.size())) != text)
      throw_different(partial / kStateFile);
  }
  Manifest manifest;
  manifest.step = checkpoint.step;
  manifest.seed = checkpoint.seed;
  manifest.config_sha256 = checkpoint.config_sha256;
  manifest.base_sha256 = checkpoint.base_sha256;
  for (const char* name : {kAdapterFile, kOptimizerFile, kStateFile})
    manifest.files.push_back(describe_file(partial, name));
  write_manifest(partial, manifest);
  try {
    read_manifest(partial);
  } catch (const DataError&) {
    throw_different(partial / kManifestFile);
  }
  io::fsync_folder(partial);
}

/// Removes a folder of ours; what cannot be removed is told and left.
void remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error)
    log_warning(folder.string() + ": cannot remove: " + error.message());
}

/// Renames first, so that a kill in between never leaves a half-removed folder under a whole name.
void remove_checkpoint(const fs::path& folder) {
  const fs::path removed = with_suffix(folder, kRemoved);
  remove_folder(removed);
  std::error_code error;
  fs::rename(folder, removed, error);
  if (error)
    log_warning(folder.string() + ": cannot remove: " + error.message());
  else
    remove_folder(removed);
}

}  // namespace

fs::path write_partial_checkpoint(const fs::path& output_dir, const Checkpoint& checkpoint) {
  const fs::path partial = with_suffix(folder_of(output_dir, checkpoint.step), kPartial);
  std::error_code error;
  fs::remove_all(partial, error);
  io::require_free_space(output_dir, bytes_of(checkpoint), "a checkpoint");
  try {
    write_files(partial, checkpoint);
  } catch (...) {
    fs::remove_all(partial, error);
    throw;
  }
  return partial;
}

fs::path commit_checkpoint(const fs::path& output_dir, int64_t step) {
  const fs::path folder = folder_of(output_dir, step);
  const fs::path replaced = with_suffix(folder, kReplaced);
  std::error_code error;
  const bool replaces = fs::exists(fs::symlink_status(folder, error));
  if (replaces) {
    fs::remove_all(replaced, error);
    io::rename_durably(folder, replaced);
  }
  io::rename_durably(with_suffix(folder, kPartial), folder);
  if (replaces)
    remove_folder(replaced);
  return folder;
}

std::vector<std::pair<int64_t, fs::path>> list_checkpoints(const fs::path& output_dir) {
  return list_folders(output_dir, "");
}

std::optional<fs::path> find_newest_checkpoint(const fs::path& output_dir) {
  const auto folders = list_checkpoints(output_dir);
  for (const auto& [step, folder] : folders) {
    try {
      verify_folder(folder);
      return folder;
    } catch (const Error& error) {
      log_warning(std::string(error.what()) + " Passing over " + folder.string() + ".");
    }
  }
  if (!folders.empty()) {
    throw DataError(output_dir.string() + ": " + std::to_string(folders.size()) +
                    " checkpoints, and none of them is whole. Use --resume never to start over; "
                    "the damaged ones are kept beside the new run.");
  }
  return std::nullopt;
}

void rotate_checkpoints(const fs::path& output_dir, int64_t newest_step, int64_t limit) {
  if (limit <= 0)
    return;
  auto others = list_checkpoints(output_dir);
  std::erase_if(others, [&](const auto& entry) { return entry.first == newest_step; });
  // Folders of later steps are what a resume from an earlier checkpoint left behind: they go first.
  std::stable_partition(others.begin(), others.end(),
                        [&](const auto& entry) { return entry.first < newest_step; });
  for (size_t i = static_cast<size_t>(limit - 1); i < others.size(); ++i)
    remove_checkpoint(others[i].second);
}

void remove_stale_partials(const fs::path& output_dir) {
  for (const std::string_view suffix : {kPartial, kReplaced, kRemoved}) {
    for (const auto& [step, folder] : list_folders(output_dir, suffix)) {
      // A folder that was moved aside for its successor, which then never came: it goes back.
      std::error_code error;
      const fs::path whole = folder_of(output_dir, step);
      if (suffix == kReplaced && !fs::exists(fs::symlink_status(whole, error))) {
        fs::rename(folder, whole, error);
        if (!error)
          continue;
      }
      remove_folder(folder);
    }
  }
}

}  // namespace shardtune::trainer
