#include "export/output_folder.h"

#include <algorithm>
#include <system_error>

#include "core/error.h"
#include "core/log.h"
#include "export/provenance.h"
#include "io/file.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

bool is_ours(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / kProvenanceFile, ignored) ||
         fs::exists(folder / kExportReportFile, ignored);
}

void check_target(const fs::path& target, Existing existing) {
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (!fs::exists(status))
    return;
  if (!fs::is_directory(status))
    throw ConfigError(target.string() +
                      ": expected a folder or nothing, found a file. Choose another --out.");
  const bool is_empty = fs::is_empty(target, error);
  if (error)
    throw WriteError(target.string() + ": cannot list the folder: " + error.message() +
                     ". Choose another output folder.");
  if (is_empty)
    return;
  if (existing == Existing::kRefuse)
    throw ConfigError(
        target.string() + ": expected an empty or absent folder, found files in it. " +
        (is_ours(target) ? "Remove it, replace it with --overwrite, or choose another "
                           "--out."
                         : "Choose another --out."));
  if (!is_ours(target))
    throw ConfigError(target.string() +
                      ": it holds files that shardtune did not write, so it is not "
                      "replaced. Remove it or choose another folder.");
}

}  // namespace

OutputFolder::OutputFolder(const fs::path& target, Existing existing)
    : target_(fs::absolute(target).lexically_normal()) {
  if (target.empty())
    throw ConfigError("--out: expected a folder name, found an empty text.");
  if (target_.filename().empty())  // "out/" ends in an empty component
    target_ = target_.parent_path();
  if (target_ == target_.root_path())
    throw ConfigError(target.string() + ": cannot be an output folder. Choose another --out.");
  check_target(target_, existing);
  io::create_folders(target_.parent_path());
  partial_ = target_.parent_path() / ("." + target_.filename().string() + ".shardtune-partial");
  std::error_code error;
  fs::remove_all(partial_, error);  // of a run that was killed
  if (error)
    throw WriteError(partial_.string() + ": cannot remove what an earlier run left: " +
                     error.message() + ". Remove it by hand.");
  io::create_folders(partial_);
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  if (!committed_)
    fs::remove_all(partial_, ignored);
}

void OutputFolder::commit() {
  io::fsync_folder(partial_);
  std::error_code error;
  const fs::path replaced =
      target_.parent_path() / ("." + target_.filename().string() + ".shardtune-replaced");
  fs::remove_all(replaced, error);
  const bool has_old = fs::exists(target_, error) && !fs::is_empty(target_, error);
  if (has_old)
    io::rename_durably(target_, replaced);
  else
    fs::remove(target_, error);  // an empty folder; rename() needs none there
  try {
    io::rename_durably(partial_, target_);
  } catch (...) {
    if (has_old)
      fs::rename(replaced, target_, error);
    throw;
  }
  committed_ = true;
  fs::remove_all(replaced, error);
  if (has_old && error)
    log_warning(replaced.string() +
                ": the replaced folder could not be removed: " + error.message());
}

}  // namespace shardtune::exporting
