// Methods that train tensors of the base itself and add none: bitfit (all biases), freeze (the last
// n layers, the rest frozen) and full (everything). PEFT has no type for them; what is saved is a
// LoRA of no linear (target_modules dummy-target-modules) with `bias` or `modules_to_save`, which
// PEFT loads as it is. Keys of freeze are LLaMA-Factory's. A quantised weight cannot be trained:
// the loader refuses it. Source  Ben Zaken et al. 2022, BitFit, arXiv:2106.10199
#include <algorithm>

#include "adapters/linear_adapter.h"
#include "adapters/lora_options.h"
#include "adapters/methods.h"
#include "models/family.h"

namespace shardtune::adapters {

namespace {

using models::BaseLinear;
using models::TrainedBase;

struct BaseMethodOptions {
  explicit BaseMethodOptions(std::string_view name) : method(name) {}
  std::string_view method;
  int64_t layers = 0;                // of freeze: the last ones, or the first where negative
  std::vector<std::string> modules;  // inside of them; empty: all
  std::vector<std::string> extra;    // outside of them

  std::vector<std::pair<std::string, std::string>> keys() const {
    std::vector<std::pair<std::string, std::string>> keys = {{"method", std::string(method)}};
    if (method == "freeze")
      keys.insert(keys.end(), {{"freeze_extra_modules", list_json(extra).dump()},
                               {"freeze_trainable_layers", std::to_string(layers)},
                               {"freeze_trainable_modules", list_json(modules).dump()}});
    return keys;
  }
};

/// The layer of a tensor; -1 outside of layers.
int64_t layer_of(const std::string& tensor, std::string_view layers) {
  if (!tensor.starts_with(layers))
    return -1;
  const std::string rest = tensor.substr(layers.size());
  const size_t digits = rest.find_first_not_of("0123456789");
  return digits == 0 || digits > 9 ? -1 : std::stoll(rest.substr(0, digits));
}

class BaseMethod : public LinearAdapter {
 public:
  BaseMethod(const BaseMethodOptions& options, models::Model& model)
      : LinearAdapter(model), options_(options) {
    if (model.trained_tensors().empty())
      throw ConfigError("adapter.method " + std::string(options.method) + ": the model (" +
                        model.config().model_type +
                        ") has no tensor that it trains. Use 'method: lora'.");
    check_modules(options.modules, model);
    check_modules(options.extra, model);
  }

  std::string_view method() const override { return options_.method; }
  void merge_rows(const BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

  io::Json peft_config(const std::string& base_model) const override {
    io::Json config = lora_peft_config(LoraOptions{}, {}, base_model);
    config.set("target_modules", kNoTargets);
    if (options_.method == "bitfit") {
      config.set("bias", "all");
      return config;
    }
    std::vector<std::string> modules;
    const auto add = [&](const std::string& tensor) {
      const std::string path = tensor.substr(0, tensor.rfind('.'));
      if (!path.empty() && std::ranges::find(modules, path) == modules.end())
        modules.push_back(path);
    };
    for (const models::TrainedTensor& tensor : model().trained_tensors()) {
      add(tensor.name);
      add(tensor.tied);
      if (!tensor.tied.empty())
        config.set("ensure_weight_tying", true);
    }
    config.set("modules_to_save", list_json(modules));
    return config;
  }

 private:
  BaseMethodOptions options_;
};

class BaseMethodAdapter : public AdapterOptions {
 public:
  explicit BaseMethodAdapter(BaseMethodOptions options) : options_(std::move(options)) {}
  std::string_view method() const override { return options_.method; }
  std::vector<std::pair<std::string, std::string>> keys() const override { return options_.keys(); }

  TrainedBase trained_base(const models::ModelConfig& config) const override {
    TrainedBase base;
    base.tie = TrainedBase::Tie::kShared;
    if (options_.method == "bitfit") {
      base.trains = [](const std::string& name, TrainedBase::Kind) {
        return name.ends_with(".bias");
      };
    } else if (options_.method == "full") {
      base.trains = [](const std::string&, TrainedBase::Kind) { return true; };
    } else {
      base.trains = frozen_but_layers(config);
    }
    return base;
  }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    auto adapter = std::make_unique<BaseMethod>(options_, model);
    adapter->add_trained_tensors();
    return adapter;
  }

 private:
  std::function<bool(const std::string&, TrainedBase::Kind)> frozen_but_layers(
      const models::ModelConfig& config) const {
    const int64_t count = std::abs(options_.layers);
    if (count > config.num_layers)
      throw ConfigError("adapter.freeze_trainable_layers: expected at most " +
                        std::to_string(config.num_layers) + " (the layers of the model), found " +
                        std::to_string(options_.layers) + ".");
    const int64_t first = options_.layers < 0 ? 0 : config.num_layers - count;
    const std::string layers(models::families().at(config.model_type).layers);
    return [options = options_, first, last = first + count, layers](const std::string& name,
                                                                     TrainedBase::Kind) {
      const int64_t layer = layer_of(name, layers);
      if (layer < 0)
        return is_in_modules(options.extra, name);
      return layer >= first && layer < last &&
             (options.modules.empty() || is_in_modules(options.modules, name));
    };
  }

  BaseMethodOptions options_;
};

std::unique_ptr<AdapterOptions> make(BaseMethodOptions options) {
  return std::make_unique<BaseMethodAdapter>(std::move(options));
}

}  // namespace

std::unique_ptr<AdapterOptions> read_bitfit(const OptionReader&) {
  return make(BaseMethodOptions("bitfit"));
}

std::unique_ptr<AdapterOptions> read_full(const OptionReader&) {
  return make(BaseMethodOptions("full"));
}

std::unique_ptr<AdapterOptions> read_freeze(const OptionReader& reader) {
  BaseMethodOptions options("freeze");
  options.layers = reader.integer("freeze_trainable_layers", 2, {-10000, 10000});
  if (options.layers == 0)
    reader.error("freeze_trainable_layers",
                 "expected the number of last layers, or of first ones "
                 "where it is negative, found 0.");
  options.modules = reader.texts("freeze_trainable_modules", {});
  if (options.modules == std::vector<std::string>{"all"})
    options.modules.clear();
  options.extra = reader.texts("freeze_extra_modules", {});
  return make(std::move(options));
}

}  // namespace shardtune::adapters
