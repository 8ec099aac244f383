// Options of bottleneck adapters under AdapterHub's names and with its presets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "kernels/elementwise.h"

namespace shardtune::adapters {

struct BottleneckOptions {
  /// A factor by layer; "default" is that of the others. A single one: {{"default", 16}}.
  Pattern reduction_factor = {{"default", 16.0}};
  bool has_factor_by_layer = false;
  bool mh_adapter = false;     // after attention
  bool output_adapter = true;  // after the MLP
  bool is_parallel = false;
  std::string non_linearity = "relu";
  bool original_ln_before = true;  // the adapter reads the branch with the residual added
  bool original_ln_after = true;   // the residual is added behind the adapter
  bool ln_before = false;
  bool ln_after = false;
  bool residual_before_ln = true;
  bool adapter_residual_before_ln = false;
  /// A number, or "learned" (one trained factor) or "channel" (one per feature).
  double scaling = 1.0;
  std::string scaling_kind;
  std::string init_weights = "bert";
  std::vector<int64_t> leave_out;  // layers without an adapter
  double dropout = 0.0;
  std::string adapter_name = "default";

  std::vector<std::pair<std::string, std::string>> keys() const;
  /// Empty: the identity.
  std::optional<kernels::Activation> activation() const;
  bool leaves_out(int64_t layer) const;
  /// The width of a layer's bottleneck. ConfigError: no factor for this layer.
  int64_t bottleneck_size(int64_t layer, int64_t hidden_size) const;
  /// ConfigError: a layer that the model does not have.
  void check_layers(int64_t num_layers) const;
  /// The "config" member of adapter_config.json.
  io::Json to_json() const;
};

BottleneckOptions parse_bottleneck(const OptionReader& reader);

}  // namespace shardtune::adapters
