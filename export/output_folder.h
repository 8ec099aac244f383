// An output folder that appears whole or not at all: files go to a hidden folder beside it, which
// is renamed when everything was written and checked.
#pragma once

#include <filesystem>

namespace shardtune::exporting {

/// What to do when the output is there already. kReplace replaces a folder that we wrote (it holds
/// shardtune.json or shardtune_export.json) and refuses any other that is not empty.
enum class Existing { kRefuse, kReplace };

class OutputFolder {
 public:
  /// Checks the target and creates the partial folder, so that an output that cannot be written is
  /// known before any work is done.
  /// Errors  ConfigError: the target is a file or a folder with content; WriteError: not writable
  OutputFolder(const std::filesystem::path& target, Existing existing);
  /// Removes the partial folder unless committed.
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::filesystem::path& partial() const { return partial_; }
  const std::filesystem::path& target() const { return target_; }
  /// Fsyncs the partial folder and renames it. A folder that it replaces is removed after.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

}  // namespace shardtune::exporting
