// Legend: T tokens, H hidden, F intermediate, A heads, K key/value heads, D head size.
#include "models/llama.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "autograd/ops.h"
#include "core/activity.h"
#include "models/padded_batch.h"

namespace shardtune::models {

namespace {

struct LlamaLayer {
  UnitId unit{};
  ParameterId input_norm = kNoParameter;
  ParameterId post_attention_norm = kNoParameter;
  std::unique_ptr<BaseLinear> q, k, v, o, gate, up, down;
};

/// Declares parameters and loads them from the source, checking shapes against the config.
class Loader {
 public:
  Loader(const ModelSource& source, ParameterStore& store, const LoadOptions& options)
      : source_(source), store_(store), options_(options) {}

  void expect_shape(const std::string& name, const std::vector<int64_t>& expected) const {
    const std::vector<int64_t> found = source_.shape(name);
    if (found == expected)
      return;
    const auto text = [](const std::vector<int64_t>& shape) {
      std::string joined;
      for (const int64_t extent : shape)
        joined += (joined.empty() ? "" : ", ") + std::to_string(extent);
      return "[" + joined + "]";
    };
    throw DataError(source_.path() + ": " + name + ": expected " + text(expected) +
                    " (from the model's configuration), found " + text(found) +
                    ". Use configuration and weights of one model.");
  }

  ParameterId vector(UnitId unit, const std::string& name, int64_t size) {
    expect_shape(name, {size});
    const ParameterId id =
        store_.declare({name, unit, ParameterKind::kFrozen, DType::kFloat32, Shape{size}});
    loads_.push_back([this, id, name, size] {
      std::vector<float> values;
      if (store_.is_publisher(id)) {
        values.resize(static_cast<size_t>(size));
        source_.read_rows(name, 0, size, values.data());
        source_.drop(name);
      }
      store_.publish(id, std::as_bytes(std::span(values)));
    });
    return id;
  }

  std::unique_ptr<BaseLinear> linear(UnitId unit, const std::string& path, int64_t out, int64_t in,
                                     bool has_bias) {
    const std::string name = path + ".weight";
    expect_shape(name, {out, in});
    quant::FrozenWeightRequest request;
    request.store = &store_;
    request.unit = unit;
    request.name = name;
    request.out_features = out;
    request.in_features = in;
    request.compute = options_.compute_dtype;
    auto weight = quant::make_frozen_weight(request, options_.quantization);
    loads_.push_back([this, weight = weight.get(), name] {
      weight->load([&](int64_t begin, int64_t end, float* out) {
        source_.read_rows(name, begin, end, out);
      });
      source_.drop(name);
    });
    const ParameterId bias = has_bias ? vector(unit, path + ".bias", out) : kNoParameter;
    return std::make_unique<BaseLinear>(path, num_linears_++, std::move(weight), bias);
  }

  std::unique_ptr<VocabularyTable> table(const std::string& name) {
    const ModelConfig& config = source_.config();
    expect_shape(name, {config.vocab_size, config.hidden_size});
    auto table = std::make_unique<VocabularyTable>(store_, name, config.vocab_size,
                                                   config.hidden_size, options_.compute_dtype);
    loads_.push_back([this, table = table.get(), name] {
      table->load([&](int64_t begin, int64_t end, float* out) {
        source_.read_rows(name, begin, end, out);
      });
      source_.drop(name);
    });
    return table;
  }

  void run() {
    const auto total = static_cast<int64_t>(loads_.size());
    for (int64_t done = 0; done < total; ++done) {
      loads_[done]();
      if (options_.progress)
        options_.progress(done + 1, total);
    }
    loads_.clear();
  }

 private:
  const ModelSource& source_;
  ParameterStore& store_;
  const LoadOptions& options_;
  int num_linears_ = 0;
  std::vector<std::function<void()>> loads_;
};

class Llama : public Model {
 public:
  Llama(const ModelSource& source, ParameterStore& store, const LoadOptions& options)
      : Model(store, options.compute_dtype),
        config_(source.config()),
        inverse_frequencies_(
            kernels::rope_inverse_frequencies(config_.head_dim, config_.rope_theta)) {
    Loader loader(source, store, options);
    embedding_ = loader.table("model.embed_tokens.weight");
    for (int64_t i = 0; i < config_.num_layers; ++i)
      layers_.push_back(declare_layer(loader, store, i));
    final_unit_ = store.add_unit("model.norm");
    final_norm_ = loader.vector(final_unit_, "model.norm.weight", config_.hidden_size);
    if (!config_.tie_word_embeddings)
      head_ = loader.table("lm_head.weight");
    loader.run();
  }

  const ModelConfig& config() const override { return config_; }
  UnitId layer_unit(int layer) const override { return layers_[layer].unit; }
  const VocabularyTable& head() const override { return head_ ? *head_ : *embedding_; }

  std::vector<BaseLinear*> linears() override {
    std::vector<BaseLinear*> all;
    for (const LlamaLayer& layer : layers_) {
      for (const auto* linear :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
        all.push_back(linear->get());
    }
    return all;
  }

  Variable forward(Tape& tape, const ForwardOptions& options) override;

  std::vector<UnitId> forward_units() const override {
    std::vector<UnitId> units{kFetchRows};
    for (const LlamaLayer& layer : layers_)
      units.push_back(layer.unit);
    units.push_back(final_unit_);
    return units;
  }

 private:
  /// State of one forward pass, shared with the bodies that backward runs again.
  struct Pass {
    ForwardOptions options;
    std::shared_ptr<const TokenBatch> batch;
    PassContext at(int layer) const {
      PassContext context = options.context;
      context.batch = batch.get();
      context.layer = layer;
      return context;
    }
  };

  LlamaLayer declare_layer(Loader& loader, ParameterStore& store, int64_t index) const;
  Variable embed(Tape& tape, const TokenBatch& batch) const;
  Variable run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const;
  Variable attention_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;
  Variable mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;
  Variable attend(Tape& tape, const Pass& pass, int index, Variable q, Variable k,
                  const Variable& v) const;
  Variable apply(Tape& tape, const Pass& pass, int layer, const BaseLinear& linear,
                 const Variable& x) const;
  Variable finish_branch(Tape& tape, const Pass& pass, int layer, BranchParts parts) const;
  PrefixKv prefix_of(Tape& tape, const Pass& pass, int layer) const;

  ModelConfig config_;
  std::vector<float> inverse_frequencies_;
  std::unique_ptr<VocabularyTable> embedding_;
  std::vector<LlamaLayer> layers_;
  UnitId final_unit_{};
  ParameterId final_norm_ = kNoParameter;
  std::unique_ptr<VocabularyTable> head_;
};

LlamaLayer Llama::declare_layer(Loader& loader, ParameterStore& store, int64_t index) const {
  const std::string prefix = "model.layers." + std::to_string(index);
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const bool attention_bias = config_.attention_bias;
  const bool mlp_bias = config_.mlp_bias;
  LlamaLayer layer;
  layer.unit = store.add_unit(prefix);
  const auto norm = [&](const char* name) {
    return loader.vector(layer.unit, prefix + "." + name + ".weight", hidden);
  };
  const auto linear = [&](const char* name, int64_t out, int64_t in, bool bias) {
    return loader.linear(layer.unit, prefix + "." + name, out, in, bias);
  };
  layer.input_norm = norm("input_layernorm");
  layer.q = linear("self_attn.q_proj", config_.q_features(), hidden, attention_bias);
  layer.k = linear("self_attn.k_proj", config_.kv_features(), hidden, attention_bias);
  layer.v = linear("self_attn.v_proj", config_.kv_features(), hidden, attention_bias);
  layer.o = linear("self_attn.o_proj", hidden, config_.q_features(), attention_bias);
  layer.post_attention_norm = norm("post_attention_layernorm");
  layer.gate = linear("mlp.gate_proj", inner, hidden, mlp_bias);
  layer.up = linear("mlp.up_proj", inner, hidden, mlp_bias);
  layer.down = linear("mlp.down_proj", hidden, inner, mlp_bias);
  return layer;
}

Variable Llama::forward(Tape& tape, const ForwardOptions& options) {
  SHARDTUNE_ASSERT(options.context.batch != nullptr);
  SHARDTUNE_ASSERT(options.cache == nullptr || !tape.recording());
  for (const Hooks* hooks : options.hooks) {
    if (hooks->num_virtual_tokens() > 0)
      throw UnsupportedError("virtual tokens before the embedding: see docs/status.md.");
  }
  auto pass = std::make_shared<Pass>();
  pass->options = options;
  pass->batch = options.cache == nullptr ? pad_batch(*options.context.batch)
                                         : std::make_shared<TokenBatch>(*options.context.batch);
  tape.keep(pass);
  Variable x = embed(tape, *pass->batch);
  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    const auto body = [this, pass, i](Tape& inner, const Variable& input) {
      Variable output;
      inner.in_unit(layers_[i].unit, [&] { output = run_layer(inner, *pass, i, input); });
      return output;
    };
    x = options.gradient_checkpointing && tape.recording() ? tape.checkpoint(x, body)
                                                           : body(tape, x);
  }
  Variable hidden;
  tape.in_unit(final_unit_, [&] {
    hidden = autograd::rms_norm(
        tape, x, {final_norm_, static_cast<float>(config_.rms_norm_eps), compute_dtype()});
  });
  return hidden;
}

Variable Llama::embed(Tape& tape, const TokenBatch& batch) const {
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw DataError("token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                      std::to_string(config_.vocab_size) +
                      ". Tokenizer and model do not belong together.");
    }
  }
  Tensor x(Shape{batch.num_tokens(), config_.hidden_size}, DType::kFloat32);
  embedding_->lookup(batch.ids, x);
  return Variable::constant(std::move(x));
}

Variable Llama::run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const Variable middle = autograd::add(tape, input, attention_branch(tape, pass, index, input));
  return autograd::add(tape, middle, mlp_branch(tape, pass, index, middle));
}

Variable Llama::attention_branch(Tape& tape, const Pass& pass, int index,
                                 const Variable& input) const {
  const LlamaLayer& layer = layers_[index];
  const Variable normed = autograd::rms_norm(
      tape, input, {layer.input_norm, static_cast<float>(config_.rms_norm_eps), compute_dtype()});
  const Variable q = apply(tape, pass, index, *layer.q, normed);
  const Variable k = apply(tape, pass, index, *layer.k, normed);
  const Variable v = apply(tape, pass, index, *layer.v, normed);
  const Variable attended = attend(tape, pass, index, q, k, v);
  const Variable output = apply(tape, pass, index, *layer.o, attended);
  return finish_branch(tape, pass, index, {Branch::kAttention, input, output});
}

Variable Llama::mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const LlamaLayer& layer = layers_[index];
  const Variable normed = autograd::rms_norm(
      tape, input,
      {layer.post_attention_norm, static_cast<float>(config_.rms_norm_eps), compute_dtype()});
  const Variable gate = apply(tape, pass, index, *layer.gate, normed);
  const Variable up = apply(tape, pass, index, *layer.up, normed);
  const Variable output = apply(tape, pass, index, *layer.down, autograd::swiglu(tape, gate, up));
  return finish_branch(tape, pass, index, {Branch::kMlp, input, output});
}

PrefixKv Llama::prefix_of(Tape& tape, const Pass& pass, int layer) const {
  const ActivityScope activity(Activity::kAdapters);
  PrefixKv found;
  for (Hooks* hooks : pass.options.hooks) {
    PrefixKv prefix = hooks->prefix_kv(tape, pass.at(layer));
    if (!prefix.k.defined())
      continue;
    if (found.k.defined())
      throw UnsupportedError("two adapters with prefix keys and values at once. Use one of them.");
    found = std::move(prefix);
    found.k = autograd::cast(tape, found.k, compute_dtype());
    found.v = autograd::cast(tape, found.v, compute_dtype());
  }
  return found;
}

Variable Llama::attend(Tape& tape, const Pass& pass, int index, Variable q, Variable k,
                       const Variable& v) const {
  const TokenBatch& batch = *pass.batch;
  const PrefixKv prefix = prefix_of(tape, pass, index);
  const kernels::RopeArgs rope{batch.positions, inverse_frequencies_, prefix.position_offset};
  q = autograd::rope(tape, q, rope);
  k = autograd::rope(tape, k, rope);
  Variable output;
  if (KvCache* cache = pass.options.cache) {
    if (prefix.k.defined())
      cache->set_prefix(index, prefix.k.value(), prefix.v.value());
    Tensor out(q.shape(), q.dtype());
    cache->attend(index, q.value(), k.value(), v.value(), out);
    output = Variable::constant(std::move(out));
  } else {
    kernels::AttentionShape shape;
    shape.num_heads = config_.num_heads;
    shape.num_kv_heads = config_.num_kv_heads;
    shape.head_dim = config_.head_dim;
    shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
    output = autograd::attention(tape, {q, k, v, prefix.k, prefix.v, batch.sample_offsets}, shape);
  }
  const LlamaLayer& layer = layers_[index];
  for (Hooks* hooks : pass.options.hooks) {
    if (hooks->changes_attention()) {
      const ActivityScope activity(Activity::kAdapters);
      output = hooks->after_attention_scores(
          tape, {q, output, layer.k.get(), layer.v.get(), layer.o.get()}, pass.at(index));
    }
  }
  return output;
}

Variable Llama::apply(Tape& tape, const Pass& pass, int layer, const BaseLinear& linear,
                      const Variable& x) const {
  const PassContext context = pass.at(layer);
  const bool wrapped = std::ranges::any_of(
      pass.options.hooks, [&](const Hooks* hooks) { return hooks->wraps(linear); });
  Hooks::Next next = [&](const Variable& input) {
    return linear.forward(tape, input, wrapped ? DType::kFloat32 : input.dtype());
  };
  for (auto hooks = pass.options.hooks.rbegin(); hooks != pass.options.hooks.rend(); ++hooks) {
    if (!(*hooks)->wraps(linear))
      continue;
    next = [&tape, &linear, &context, hooks = *hooks, inner = next](const Variable& input) {
      const ActivityScope activity(Activity::kAdapters);
      return hooks->on_linear(tape, linear, input, context, inner);
    };
  }
  return autograd::cast(tape, next(x), compute_dtype());
}

Variable Llama::finish_branch(Tape& tape, const Pass& pass, int layer, BranchParts parts) const {
  const ActivityScope activity(Activity::kAdapters);
  for (Hooks* hooks : pass.options.hooks) {
    if (hooks->changes_branches())
      parts.output = hooks->after_branch(tape, parts, pass.at(layer));
  }
  return parts.output;
}

}  // namespace

std::unique_ptr<Model> make_llama(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options) {
  return std::make_unique<Llama>(source, store, options);
}

}  // namespace shardtune::models
