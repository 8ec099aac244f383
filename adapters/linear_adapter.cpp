#include "adapters/linear_adapter.h"

#include <algorithm>
#include <map>

#include "autograd/ops.h"
#include "core/dry_run.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

using models::BaseLinear;

ParameterId LinearAdapter::declare(const BaseLinear& linear, const std::string& suffix, Shape shape,
                                   Initializer initializer, Reads reads) {
  const ParameterId id = AdapterBase::declare(
      {linear.unit(), linear.path() + suffix, shape, std::move(initializer), reads});
  slots_[static_cast<size_t>(linear.index())].push_back(id);
  return id;
}

void LinearAdapter::add_trained_tensors() {
  std::map<std::string, bool> is_wrapped;  // by the linear's bias
  for (const BaseLinear* linear : model().linears())
    is_wrapped[linear->path() + ".bias"] = wraps(*linear);
  for (const models::TrainedTensor& tensor : model().trained_tensors()) {
    AdapterTensor added;
    added.id = tensor.id;
    added.name = tensor.name;
    if (is_wrapped[tensor.name])
      added.name.insert(added.name.rfind('.'), ".base_layer");
    added.shape = store().spec(tensor.id).shape;
    const bool turns = models::is_conv1d(model().config(), tensor.name);
    const Shape& whole = tensor.shape;
    added.in_file = AdapterTensor::InFile{turns ? Shape{whole[1], whole[0]} : whole,
                                          tensor.first_row, turns, tensor.tied};
    add_published(std::move(added));
  }
}

io::Json LinearAdapter::with_trained_parts(io::Json config, const TargetModules& targets) {
  const TrainedParts& parts = targets.trained;
  if (!parts.modules_to_save.empty())
    config.set("modules_to_save", list_json(parts.modules_to_save));
  if (parts.bias != TrainedParts::Bias::kNone)
    config.set("bias", bias_word(parts));
  if (parts.ensure_weight_tying)
    config.set("ensure_weight_tying", true);
  return config;
}

std::vector<std::string> LinearAdapter::wrapped_targets() const {
  std::vector<std::string> paths;
  for (const BaseLinear* linear : model().linears()) {
    if (wraps(*linear))
      paths.push_back(linear->path());
  }
  return compact_targets(paths, model());
}

bool LinearAdapter::wraps_conv1d() const {
  return std::ranges::any_of(model().linears(), [this](const BaseLinear* linear) {
    return wraps(*linear) && models::is_conv1d(model().config(), linear->weight().name());
  });
}

autograd::Variable LinearAdapter::drop(autograd::Tape& tape, uint64_t site,
                                       const autograd::Variable& x,
                                       const models::PassContext& context, double p) const {
  return drop_elements(tape, x, p, context, site);
}

CounterRng LinearAdapter::rng_of(const BaseLinear& linear, const models::PassContext& context) {
  // A micro-batch is known by its first sample.
  const TokenBatch& batch = *context.batch;
  const uint64_t sample = batch.sample_ids.empty() ? 0 : batch.sample_ids.front();
  return CounterRng(
      mix_key(mix_key(context.seed, linear.path()), {static_cast<uint64_t>(context.step), sample}));
}

bool LinearAdapter::drops_module(const BaseLinear& linear, const models::PassContext& context,
                                 double p) {
  if (context.mode != models::Mode::kTraining || p <= 0.0 || DryRun::current() != nullptr)
    return false;
  return rng_of(linear, context).uniform(0) <= static_cast<float>(p);
}

void add_common_peft_keys(std::vector<std::pair<std::string, io::Json>>& own,
                          const std::vector<std::string>& targets) {
  for (const char* key :
       {"exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save"})
    own.emplace_back(key, nullptr);
  own.emplace_back("target_modules", list_json(targets));
}

void add_product(const TensorView& a, const TensorView& b, float scale, const TensorView& rows) {
  Tensor delta(rows.shape(), DType::kFloat32);
  kernels::gemm(a, b, kernels::Transpose::kNo, delta, kernels::Accumulate::kNo, scale);
  const auto values = rows.span<float>();
  for (size_t i = 0; i < values.size(); ++i)
    values[i] += delta.span<const float>()[i];
}

void check_rank(const std::string& key, int64_t rank, const BaseLinear& linear) {
  const int64_t narrow = std::min(linear.in_features(), linear.out_features());
  if (rank <= narrow)
    return;
  throw ConfigError("adapter." + key + ": expected at most " + std::to_string(narrow) +
                    " (the narrow side of " + linear.path() + ", [" +
                    std::to_string(linear.out_features()) + ", " +
                    std::to_string(linear.in_features()) + "]), found " + std::to_string(rank) +
                    ". A lower rank holds every change of that weight.");
}

}  // namespace shardtune::adapters
