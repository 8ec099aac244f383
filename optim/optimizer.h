// Optimizers own no memory: they name the state they need per element and step on spans that the
// caller hands in, so that the caller may shard, stream or offload them (DESIGN section 8.9).
// Everything is elementwise in fp32: bits depend neither on shards nor on threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/yaml_node.h"

namespace shardtune::optim {

/// Elements stepped together under one learning rate and decay. All spans have one length.
struct OptimizerSegment {
  std::span<float> parameter;
  std::span<const float> gradient;
  std::vector<std::span<float>> states;  // in the order of Optimizer::state_names()
  double learning_rate = 0.0;
  double weight_decay = 0.0;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// State tensors per element, fp32, zero at the start, e.g. {"exp_avg", "exp_avg_sq"}; also
  /// their names in checkpoints.
  virtual std::vector<std::string> state_names() const = 0;
  /// One update; `step` counts from 1 over the whole training (bias correction).
  /// ArgumentError: spans of different length, wrong number of states, step < 1.
  virtual void step(std::span<const OptimizerSegment> segments, int64_t step) const = 0;
};

/// Builds the optimizer that `name` asks for (default adamw) from the `optimizer` section, marking
/// its keys as known; problems go to the section's errors. weight_decay is the caller's: it is
/// handed in per segment.
std::unique_ptr<Optimizer> make_optimizer(const io::YamlNode& section);
std::vector<std::string> optimizer_names();

}  // namespace shardtune::optim
