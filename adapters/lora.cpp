#include "adapters/lora.h"

#include <cmath>

#include "adapters/lora_options.h"
#include "autograd/ops.h"
#include "core/rng.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

/// The pair of one linear; ids are kNoParameter where LoRA does not attach.
struct LoraPair {
  const BaseLinear* linear = nullptr;
  ParameterId lora_A = kNoParameter;
  ParameterId lora_B = kNoParameter;
};

class Lora : public Adapter {
 public:
  Lora(const LoraOptions& options, models::Model& model) : options_(options), model_(model) {
    pairs_.resize(model.linears().size());
    for (BaseLinear* linear : match_target_modules(options.targets, model))
      declare(*linear);
  }

  std::string_view method() const override { return "lora"; }
  const std::vector<AdapterTensor>& tensors() const override { return tensors_; }
  void initialize(uint64_t seed) override;

  bool wraps(const BaseLinear& linear) const override {
    return pairs_[linear.index()].linear != nullptr;
  }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override;

  bool mergeable() const override { return true; }
  void add_delta(const BaseLinear& linear, int64_t begin, int64_t end,
                 const TensorView& out) const override;
  io::Json peft_config(const std::string& base_model) const override;

 private:
  void declare(const BaseLinear& linear);
  Variable drop(Tape& tape, const BaseLinear& linear, const Variable& x,
                const models::PassContext& context) const;

  LoraOptions options_;
  models::Model& model_;
  std::vector<LoraPair> pairs_;  // by BaseLinear::index()
  std::vector<AdapterTensor> tensors_;
};

void Lora::declare(const BaseLinear& linear) {
  const int64_t rank = options_.lora_rank;
  const auto add = [&](const char* suffix, Shape shape) {
    const std::string name = linear.path() + suffix;
    const ParameterId id = model_.store().declare(
        {name, linear.unit(), ParameterKind::kTrainable, DType::kFloat32, shape});
    tensors_.push_back({id, name, shape});
    return id;
  };
  LoraPair& pair = pairs_[linear.index()];
  pair.linear = &linear;
  pair.lora_A = add(".lora_A.weight", {rank, linear.in_features()});
  pair.lora_B = add(".lora_B.weight", {linear.out_features(), rank});
}

void Lora::initialize(uint64_t seed) {
  for (const AdapterTensor& tensor : tensors_) {
    std::vector<float> values;
    if (model_.store().is_publisher(tensor.id)) {
      values.assign(static_cast<size_t>(tensor.shape.numel()), 0.0f);
      if (tensor.name.ends_with(".lora_A.weight")) {
        const CounterRng rng(mix_key(seed, tensor.name));
        const float bound = 1.0f / std::sqrt(static_cast<float>(tensor.shape[1]));
        const float deviation = 1.0f / static_cast<float>(options_.lora_rank);
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = options_.init == LoraInit::kKaiming ? (2.0f * rng.uniform(i) - 1.0f) * bound
                                                          : rng.normal(i) * deviation;
        }
      }
    }
    model_.store().publish(tensor.id, std::as_bytes(std::span(values)));
  }
}

Variable Lora::drop(Tape& tape, const BaseLinear& linear, const Variable& x,
                    const models::PassContext& context) const {
  const TokenBatch& batch = *context.batch;
  auto tokens = std::make_shared<autograd::DropoutTokens>();
  tokens->index_in_sample = batch.token_indices;
  tokens->sample_of_token.resize(batch.ids.size());
  for (size_t s = 0; s + 1 < batch.sample_offsets.size(); ++s) {
    for (int32_t t = batch.sample_offsets[s]; t < batch.sample_offsets[s + 1]; ++t)
      tokens->sample_of_token[t] = batch.sample_ids[s];
  }
  const uint64_t site = static_cast<uint64_t>(linear.index());
  const uint64_t key = mix_key(context.seed, {static_cast<uint64_t>(context.step),
                                              static_cast<uint64_t>(context.layer), site});
  return autograd::dropout(tape, x, static_cast<float>(options_.lora_dropout), key,
                           std::move(tokens));
}

Variable Lora::on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                         const models::PassContext& context, const Next& next) {
  const LoraPair& pair = pairs_[linear.index()];
  const Variable base = next(x);
  const bool drops = context.mode == models::Mode::kTraining && options_.lora_dropout > 0.0;
  const Variable input = drops ? drop(tape, linear, x, context) : x;
  return autograd::low_rank_update(
      tape, base, input, {pair.lora_A, pair.lora_B, static_cast<float>(options_.scale())});
}

void Lora::add_delta(const BaseLinear& linear, int64_t begin, int64_t end,
                     const TensorView& out) const {
  const LoraPair& pair = pairs_[linear.index()];
  if (pair.linear == nullptr)
    return;
  const TensorView b = model_.store().value(pair.lora_B).rows(begin, end);
  kernels::gemm(b, model_.store().value(pair.lora_A), kernels::Transpose::kNo, out,
                kernels::Accumulate::kYes, static_cast<float>(options_.scale()));
}

io::Json Lora::peft_config(const std::string& base_model) const {
  std::vector<std::string> targets;
  for (const LoraPair& pair : pairs_) {
    if (pair.linear != nullptr)
      targets.push_back(pair.linear->path());
  }
  return lora_peft_config(options_, compact_targets(targets, model_), base_model);
}

class AttachLora : public AdapterOptions {
 public:
  explicit AttachLora(LoraOptions options) : options_(std::move(options)) {}
  std::string_view method() const override { return "lora"; }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    return std::make_unique<Lora>(options_, model);
  }

 private:
  LoraOptions options_;
};

}  // namespace

double LoraOptions::scale() const {
  const auto rank = static_cast<double>(lora_rank);
  return lora_alpha / (use_rslora ? std::sqrt(rank) : rank);
}

std::unique_ptr<AdapterOptions> lora_from_yaml(const io::YamlNode& section) {
  return std::make_unique<AttachLora>(parse_lora_yaml(section));
}

std::unique_ptr<AdapterOptions> lora_from_peft(const io::Json& adapter_config,
                                               const std::string& name) {
  return std::make_unique<AttachLora>(parse_lora_peft(adapter_config, name));
}

}  // namespace shardtune::adapters
