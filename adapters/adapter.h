// An adapter: trainable parameters and the hooks that bring them into the model. Backward comes
// from the tape; the frozen format is never seen. One file and one registry line per method.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/registry.h"
#include "io/json.h"
#include "io/yaml_node.h"
#include "models/hooks.h"
#include "models/model.h"

namespace shardtune::adapters {

/// One tensor of an adapter as it is exported: PEFT's key without "base_model.model.".
struct AdapterTensor {
  ParameterId id = kNoParameter;
  std::string name;  // "model.layers.0.self_attn.q_proj.lora_A.weight"
  Shape shape;
};

class Adapter : public models::Hooks {
 public:
  virtual std::string_view method() const = 0;
  /// Trainables in the order of declaration.
  virtual const std::vector<AdapterTensor>& tensors() const = 0;
  /// Publishes initial values keyed by (seed, tensor name, element). Collective.
  virtual void initialize(uint64_t seed) = 0;

  /// Whether the adapter's change of this linear can be written as a delta of its weight.
  virtual bool mergeable() const = 0;
  /// Adds rows [begin, end) of the change of `linear`'s weight to out [end-begin, in] f32. Linears
  /// that the adapter does not touch add nothing. Layer unit leased by the caller.
  virtual void add_delta(const models::BaseLinear& linear, int64_t begin, int64_t end,
                         const TensorView& out) const = 0;

  /// adapter_config.json as PEFT 0.21.2 writes it.
  virtual io::Json peft_config(const std::string& base_model) const = 0;
};

/// Two steps, since configuration is checked before a model is loaded: options from YAML or from an
/// adapter_config.json, then attach.
class AdapterOptions {
 public:
  virtual ~AdapterOptions() = default;
  virtual std::string_view method() const = 0;
  /// Declares parameters for the model. ConfigError: target_modules that match nothing (lists the
  /// candidates).
  virtual std::unique_ptr<Adapter> attach(models::Model& model) const = 0;
};
struct AdapterMethod {
  std::unique_ptr<AdapterOptions> (*from_yaml)(const io::YamlNode& section);
  std::unique_ptr<AdapterOptions> (*from_peft)(const io::Json& adapter_config,
                                               const std::string& name);
  std::string_view peft_type;
};
const Registry<AdapterMethod>& adapter_methods();

/// Reads the `adapter:` section: its `method` key picks the table entry.
std::unique_ptr<AdapterOptions> adapter_options_from_yaml(const io::YamlNode& section);

/// Attaches the adapter of a PEFT folder and publishes its tensors. Collective.
/// Errors  MissingInputError, DataError: damaged file, missing, unexpected or misshapen tensor;
///         UnsupportedError: peft_type or option that is not there yet
std::unique_ptr<Adapter> load_adapter(const std::string& folder, models::Model& model);

}  // namespace shardtune::adapters
