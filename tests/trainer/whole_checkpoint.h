// A checkpoint verified and read whole, for tests that look at all of it.
#pragma once

#include "trainer/checkpoint_reader.h"

namespace shardtune::testing {

inline std::vector<trainer::NamedTensor> whole_tensors(trainer::CheckpointTensors& file) {
  std::vector<trainer::NamedTensor> tensors;
  for (const auto& [name, place] : file.tensors()) {
    int64_t numel = 1;
    for (const int64_t extent : place.shape)
      numel *= extent;
    auto& tensor = tensors.emplace_back(trainer::NamedTensor{name, place.shape, {}});
    tensor.values.resize(static_cast<size_t>(numel));
    file.read(name, 0, tensor.values);
  }
  return tensors;
}

inline trainer::Checkpoint read_checkpoint(const trainer::fs::path& folder) {
  trainer::verify_folder(folder);
  trainer::CheckpointReader reader(folder);
  trainer::Checkpoint checkpoint;
  static_cast<trainer::CheckpointState&>(checkpoint) = reader.state();
  checkpoint.adapter = whole_tensors(reader.adapter());
  checkpoint.optimizer = whole_tensors(reader.optimizer());
  return checkpoint;
}

}  // namespace shardtune::testing
