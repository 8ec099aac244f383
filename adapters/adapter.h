// An adapter: trainable parameters and the hooks that bring them into the model. Backward comes
// from the tape; the frozen format is never seen. One file and one registry line per method.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "adapters/option_reader.h"
#include "core/registry.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/yaml_node.h"
#include "models/hooks.h"
#include "models/model.h"
#include "quant/kept_weight.h"

namespace shardtune::adapters {

inline constexpr const char* kModulePrefix = "base_model.model.";

/// One tensor of an adapter: a trainable, or what is saved beside them.
struct AdapterTensor {
  ParameterId id = kNoParameter;
  std::string name;  // "model.layers.0.self_attn.q_proj.lora_A.weight"
  Shape shape;
  /// Of what is saved but not trained (then there is no id): its values, the same on every rank.
  std::shared_ptr<Tensor> constant;
  std::string prefix = kModulePrefix;  // prefix + name is PEFT's key

  /// How the file holds it, where that is not as the store does.
  struct InFile {
    Shape shape;                 // of the whole tensor
    int64_t first_row = 0;       // of the part that `id` is
    bool is_transposed = false;  // of a Conv1D
    std::string also;            // a second name, of a tied tensor
  };
  std::optional<InFile> in_file = {};
};

/// One tensor of the saved folder: as a trainable is, or computed from several parameters.
struct SavedTensor {
  std::string name;
  Shape shape;
  std::vector<ParameterId> sources;  // trainables
  /// Writes the tensor from the whole values of its sources.
  std::function<void(const std::vector<std::vector<float>>& sources, std::span<float> out)> compose;
  std::string prefix = kModulePrefix;
  /// The way back: the values of one source in what a saved folder holds; empty where the folder
  /// holds sources as AdapterTensor says, or they are never read from one.
  std::function<void(std::span<const float> saved, size_t source, std::span<float> out)> decompose =
      {};
};

/// What the folder of a saved adapter is called inside, by the library that it is for.
struct AdapterFolder {
  const char* weights_file;
  const char* pickle_file;  // what the library may have written instead
  const char* save_again;   // how it writes weights_file
  const char* library;      // of the model card
};
inline constexpr AdapterFolder kPeftFolder{"adapter_model.safetensors", "adapter_model.bin",
                                           "with PEFT's safe_serialization=True", "peft"};
inline constexpr AdapterFolder kAdapterHubFolder{"adapter.safetensors", "pytorch_adapter.bin",
                                                 "with save_adapter(..., use_safetensors=True)",
                                                 "adapters"};

/// What an adapter puts before every sample.
struct FrontTokens {
  int64_t positions = 0;  // of the model's context
  int64_t rows = 0;       // of the batch, in each sample
  int64_t tasks = 0;      // that have tokens of their own; 0: the method knows no tasks
};

/// What initial values may depend on.
struct InitContext {
  InitContext(uint64_t run_seed) : seed(run_seed) {}
  uint64_t seed;
  const models::ModelSource* source = nullptr;  // the original weights; null: not at hand
  /// Runs the model over a sample of the data with only these hooks, the same on every rank; empty:
  /// no data at hand. Collective.
  std::function<void(models::Hooks& hooks)> forward = {};
  const TokenBatch* sample = nullptr;  // that data; rows past it are padding
  /// Ids of a text as the model's tokenizer encodes it, ends included; may be empty.
  std::function<std::vector<int32_t>(const std::string& text)> encode = {};
};

class Adapter : public models::Hooks {
 public:
  virtual std::string_view method() const = 0;
  /// What is saved, in the order of declaration.
  virtual const std::vector<AdapterTensor>& tensors() const = 0;
  /// What the saved folder holds: tensors(), unless the peer writes something else.
  virtual std::vector<SavedTensor> saved_tensors() const;
  /// Publishes initial values keyed by (seed, tensor name, element). Collective.
  virtual void initialize(const InitContext& context) = 0;
  /// Publishes what is derived from the base and the values of tensors(); after they were
  /// published from a saved adapter. Collective.
  virtual void finish_loading() {}

  /// Reads what it keeps of the original weights beside the base (merge-aware training), before
  /// initialize() or values are published: of the linears whose codes this rank publishes.
  using Keeps = std::function<bool(const models::BaseLinear&)>;
  virtual void keep_base(const models::ModelSource& source, const Keeps& keeps) {}
  /// Publishes what of the base follows from the values of tensors(): after the new values of a
  /// step or a resume were published. Collective, between walks.
  virtual void renew_base() {}

  /// Whether the adapter's change can be written into the weights of the linears it wraps.
  virtual bool mergeable() const = 0;
  /// Why it cannot, where the method has a reason to give: "it has ...".
  virtual std::string why_not_mergeable() const { return ""; }
  /// rows [end-begin, in] f32 hold rows [begin, end) of the weight of `linear`; they become those
  /// of the merged weight. Linears that the adapter does not touch stay. Layer unit leased by the
  /// caller.
  virtual void merge_rows(const models::BaseLinear& linear, int64_t begin, int64_t end,
                          const TensorView& rows) const = 0;

  /// A row of the weight changes by the same value in each group of so many columns.
  virtual int64_t columns_per_change(const models::BaseLinear& linear) const { return 1; }

  /// The same for the linear's bias.
  virtual void merge_bias(const models::BaseLinear& linear, std::span<float> bias) const {}

  /// Tables of the vocabulary that an adapter may change as it changes linears.
  enum class Table { kEmbedding, kHead };
  virtual bool changes(Table table) const { return false; }
  /// As merge_rows, for a table that it changes; leases what it reads.
  virtual void merge_table_rows(Table table, int64_t begin, int64_t end,
                                const TensorView& rows) const {}
  /// Whether a tensor that PEFT writes beside the adapter's is a copy of one of the base; no tensor
  /// of its own. Warns where the values differ. Collective. DataError: of another shape
  virtual bool is_copy_of_base(const io::TensorInfo& tensor, const io::TensorSource& file) const {
    return false;
  }

  /// Which task samples without one of their own are of, where the method has tasks.
  virtual void select_task(int64_t task) {}

  /// How many steps this training has; told before its first step and before the state of a
  /// checkpoint.
  virtual void set_total_steps(int64_t total_steps) {}

  /// Factor on the learning rate of one trainable.
  virtual double learning_rate_scale(ParameterId id) const { return 1.0; }

  virtual AdapterFolder folder() const { return kPeftFolder; }
  /// adapter_config.json as PEFT 0.21.2 writes it, or adapters 1.3.0 what it alone has.
  virtual io::Json peft_config(const std::string& base_model) const = 0;
};

/// Two steps, since configuration is checked before a model is loaded: options from YAML or from an
/// adapter_config.json, then attach.
class AdapterOptions {
 public:
  virtual ~AdapterOptions() = default;
  virtual std::string_view method() const = 0;
  /// Keys of the `adapter:` section with their values as YAML, defaults included: what a resume
  /// compares.
  virtual std::vector<std::pair<std::string, std::string>> keys() const = 0;
  /// The folder whose values training starts from; empty: initialize().
  virtual std::string start_folder() const { return {}; }
  /// What it trains of the base itself: for LoadOptions, before attach().
  virtual models::TrainedBase trained_base(const models::ModelConfig& config) const { return {}; }
  virtual FrontTokens front_tokens() const { return {}; }
  /// Names of the states that the method keeps per element of each trainable, zero at the start
  /// (Hooks::on_update); none without training.
  virtual std::vector<std::string> element_states() const { return {}; }
  /// ConfigError: what the options want does not fit into so many steps.
  virtual void check_total_steps(int64_t total_steps) const {}
  /// The form in which the original weights are kept; nothing: the training is not merge-aware.
  virtual std::optional<quant::KeptForm> merge_aware() const { return std::nullopt; }
  /// Makes a saved adapter merge-aware as it was trained. DataError: the method cannot be.
  virtual void set_merge_aware(quant::KeptForm form);
  /// What of a new adapter follows from a sample of the data, beside the model.
  enum class FromData { kNothing, kValues, kShapes };
  virtual FromData from_data() const { return FromData::kNothing; }
  /// Of kShapes: the options with the shapes that fit the sample, for a model that is loaded anew;
  /// attach() without them takes those that need the most memory, for a plan. Null in a dry run,
  /// which walks what is run. Collective.
  virtual std::unique_ptr<AdapterOptions> fitted_to_data(models::Model& model,
                                                         const InitContext& context) const;
  /// The same with the shapes of a checkpoint. DataError: they are not there, or not these options'
  virtual std::unique_ptr<AdapterOptions> fitted_as(
      models::Model& model, const std::vector<models::NamedState>& states) const;
  /// Declares parameters for the model. ConfigError: target_modules that match nothing (lists the
  /// candidates).
  virtual std::unique_ptr<Adapter> attach(models::Model& model) const = 0;
};
struct AdapterMethod {
  /// Reads the method's options; problems go to the reader.
  std::unique_ptr<AdapterOptions> (*read)(const OptionReader& reader);
  std::string_view peft_type;
  /// PEFT's key -> ours, where the run's section has another.
  std::map<std::string, std::string, std::less<>> names;
};
const Registry<AdapterMethod>& adapter_methods();

/// Reads the `adapter:` section: its `method` key picks the table entry. Null after an error.
std::unique_ptr<AdapterOptions> adapter_options_from_yaml(const io::YamlNode& section);
/// Reads an adapter_config.json of PEFT's or AdapterHub's; `name` is its path.
std::unique_ptr<AdapterOptions> adapter_options_from_peft(const io::Json& config,
                                                          const std::string& name);

/// The options of a PEFT folder: their trained_base() goes into LoadOptions before load_adapter().
std::unique_ptr<AdapterOptions> read_adapter_options(const std::string& folder);
/// Publishes a folder's tensors as the values of an adapter attached with its options. Collective.
void read_adapter_values(const std::string& folder, Adapter& adapter, models::Model& model);
/// Attaches the adapter of a PEFT folder and publishes its tensors. Collective.
/// Errors  MissingInputError, DataError: damaged file, missing, unexpected or misshapen tensor;
///         UnsupportedError: peft_type or option that is not there yet
std::unique_ptr<Adapter> load_adapter(const std::string& folder, models::Model& model);

}  // namespace shardtune::adapters
