// Reading a checkpoint in parts: what every rank must know of it, and of the tensors only the
// elements that are asked for. Bytes are used after their block was compared with the manifest
// (verified_file.h), so a reader is safe also where another process verified the folder; memory is
// bounded by the kept blocks, whatever the checkpoint's size.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "core/tensor.h"
#include "trainer/checkpoint.h"
#include "trainer/verified_file.h"

namespace shardtune::trainer {

/// One of the files of tensors.
class CheckpointTensors {
 public:
  /// DataError: damaged, or a tensor that is not F32.
  CheckpointTensors(const fs::path& path, ManifestFile expected);

  struct Place {
    std::vector<int64_t> shape;
    int64_t offset = 0;  // in the file
  };
  const std::map<std::string, Place>& tensors() const { return tensors_; }
  /// DataError: no such tensor, or one of another shape.
  void check(const std::string& name, const Shape& shape) const;
  /// Elements from `begin` on, in row-major order; within a tensor that check() passed.
  void read(const std::string& name, int64_t begin, std::span<float> values);

  int64_t size() const { return file_.size(); }
  int64_t bytes_read() const { return file_.bytes_read(); }

 private:
  VerifiedFile file_;
  std::map<std::string, Place> tensors_;
};

class CheckpointReader {
 public:
  /// Reads manifest, state and headers.
  /// Errors  MissingInputError: no such folder; DataError, UnsupportedError as verify_folder()
  explicit CheckpointReader(const fs::path& folder);

  const CheckpointState& state() const { return state_; }
  /// Of the manifest: checkpoints with equal digests are equal.
  const std::string& digest() const { return manifest_.sha256; }
  CheckpointTensors& adapter() { return adapter_; }
  CheckpointTensors& optimizer() { return optimizer_; }
  const CheckpointTensors& adapter() const { return adapter_; }
  const CheckpointTensors& optimizer() const { return optimizer_; }

  /// Of the files of tensors: what this reader took so far, and what there is.
  int64_t bytes_read() const { return adapter_.bytes_read() + optimizer_.bytes_read(); }
  int64_t num_bytes() const { return adapter_.size() + optimizer_.size(); }

 private:
  const ManifestFile& listed(const char* name) const;
  void read_state();

  fs::path folder_;
  Manifest manifest_;
  CheckpointState state_;
  CheckpointTensors adapter_;
  CheckpointTensors optimizer_;
};

}  // namespace shardtune::trainer
