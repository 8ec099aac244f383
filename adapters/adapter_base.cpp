#include "adapters/adapter_base.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops.h"

namespace shardtune::adapters {

Initializer constant_values(float value) {
  return [value](const CounterRng&, std::span<float> values) { std::ranges::fill(values, value); };
}

Initializer normal_values(float deviation) {
  return [deviation](const CounterRng& rng, std::span<float> values) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = rng.normal(i) * deviation;
  };
}

Initializer uniform_values(float bound) {
  return [bound](const CounterRng& rng, std::span<float> values) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = (2.0f * rng.uniform(i) - 1.0f) * bound;
  };
}

Initializer kaiming_values(int64_t fan_in) {
  return uniform_values(1.0f / std::sqrt(static_cast<float>(fan_in)));
}

void AdapterBase::initialize(const InitContext& context) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (initials_[i].fill == nullptr)
      continue;  // a constant, or published with the base
    UnitLease lease;
    if (initials_[i].reads == Reads::kBase)
      lease = store().acquire(store().spec(tensors_[i].id).unit, Pass::kForward);
    publish(tensors_[i].id, [&](std::span<float> values) {
      initials_[i].fill(CounterRng(mix_key(context.seed, store().spec(tensors_[i].id).name)),
                        values);
    });
  }
  finish_loading();
}

ParameterId AdapterBase::declare(Declaration declaration) {
  const ParameterId id =
      store().declare({declaration.name, declaration.unit, ParameterKind::kTrainable,
                       DType::kFloat32, declaration.shape});
  const bool is_part = declaration.in_file.has_value();
  tensors_.push_back({id, std::move(is_part ? declaration.file_name : declaration.name),
                      declaration.shape, nullptr, std::move(declaration.prefix),
                      std::move(declaration.in_file)});
  initials_.push_back({std::move(declaration.initializer), declaration.reads});
  return id;
}

void AdapterBase::add_constant(std::string prefix, std::string name,
                               std::shared_ptr<Tensor> values) {
  const Shape shape = values->shape();
  tensors_.push_back({kNoParameter, std::move(name), shape, std::move(values), std::move(prefix)});
  initials_.emplace_back();
}

void AdapterBase::add_published(AdapterTensor tensor) {
  tensors_.push_back(std::move(tensor));
  initials_.emplace_back();
}

void AdapterBase::name_again(std::string name, size_t tensor) {
  AdapterTensor& named = tensors_.at(tensor);
  named.in_file = {named.shape, 0, false, std::move(name)};
}

autograd::Variable AdapterBase::drop_elements(autograd::Tape& tape, const autograd::Variable& x,
                                              double p, const models::PassContext& context,
                                              uint64_t site) {
  if (context.mode != models::Mode::kTraining || p <= 0.0)
    return x;
  const TokenBatch& batch = *context.batch;
  auto tokens = std::make_shared<autograd::DropoutTokens>();
  tokens->index_in_sample = batch.token_indices;
  tokens->sample_of_token.resize(batch.ids.size());
  for (size_t s = 0; s + 1 < batch.sample_offsets.size(); ++s) {
    for (int32_t t = batch.sample_offsets[s]; t < batch.sample_offsets[s + 1]; ++t)
      tokens->sample_of_token[static_cast<size_t>(t)] = batch.sample_ids[s];
  }
  const uint64_t key = mix_key(context.seed, {static_cast<uint64_t>(context.step),
                                              static_cast<uint64_t>(context.layer), site});
  return autograd::dropout(tape, x, static_cast<float>(p), key, std::move(tokens));
}

void AdapterBase::publish(ParameterId id, const std::function<void(std::span<float>)>& fill) const {
  std::vector<float> values;
  if (store().is_publisher(id)) {
    values.resize(static_cast<size_t>(store().spec(id).shape.numel()));
    fill(values);
  }
  store().publish(id, std::as_bytes(std::span(values)));
}

int64_t read_num_virtual_tokens(const OptionReader& reader) {
  if (!reader.has("num_virtual_tokens")) {
    reader.error("num_virtual_tokens",
                 "expected a number of virtual tokens, found none. Write for example "
                 "'num_virtual_tokens: 20'.");
  }
  if (reader.source() == OptionReader::Source::kSaved) {
    for (const char* key : {"num_attention_heads", "num_layers", "token_dim"})
      reader.has(key);  // the tensors say the same
    reader.integer("num_transformer_submodules", 1, {1, 1});
  }
  return reader.integer("num_virtual_tokens", 1, {1, 65536});
}

}  // namespace shardtune::adapters
