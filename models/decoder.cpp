// Legend: T tokens, H hidden, A heads, D head size.
#include "models/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "autograd/matrix_ops.h"
#include "core/activity.h"

namespace shardtune::models {

void Decoder::load(const ModelSource& source, const LoadOptions& given, const Names& names) {
  LoadOptions options = given;
  if (config_.tie_word_embeddings && given.trained.tie == TrainedBase::Tie::kShared)
    options.trained.trains = [trains = given.trained, names](const std::string& name,
                                                             TrainedBase::Kind kind) {
      return trains(name, kind) || (name == names.embedding && trains(names.head, kind));
    };
  Loader loader(source, store(), options, linears_, trained_);
  embedding_ = loader.table(names.embedding, config_.vocab_size);
  declare_positions(loader);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string layer = names.layers + "." + std::to_string(i);
    layer_units_.push_back(store().add_unit(layer));
    declare_layer(loader, layer_units_.back(), layer);
  }
  final_unit_ = store().add_unit(names.final_norm);
  declare_final_norm(loader, final_unit_, names.final_norm);
  load_head(loader, options, names);
  loader.run();
}

// A tied head is a table of its own as soon as it and the embedding can come to differ.
void Decoder::load_head(Loader& loader, const LoadOptions& options, const Names& names) {
  if (!config_.tie_word_embeddings) {
    head_ = loader.table(names.head, config_.vocab_size);
    return;
  }
  const bool embedding = options.trained(names.embedding, TrainedBase::Kind::kTable);
  const bool head = options.trained(names.head, TrainedBase::Kind::kTable);
  if (options.trained.tie == TrainedBase::Tie::kSplit && (embedding || head)) {
    head_ = loader.table(names.head, config_.vocab_size, names.embedding);
    return;
  }
  for (TrainedTensor& tensor : trained_) {
    if (tensor.name == names.embedding)
      tensor.tied = names.head;
  }
}

std::vector<const VocabularyTable*> Decoder::tables() const {
  std::vector<const VocabularyTable*> all{embedding_.get()};
  if (positions_)
    all.push_back(positions_.get());
  if (head_)
    all.push_back(head_.get());
  return all;
}

std::vector<BaseLinear*> Decoder::linears() {
  std::vector<BaseLinear*> all;
  for (const auto& linear : linears_)
    all.push_back(linear.get());
  return all;
}

kernels::AttentionShape Decoder::attention_shape(int layer) const {
  kernels::AttentionShape shape;
  shape.num_heads = config_.num_heads;
  shape.num_kv_heads = config_.num_kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  shape.window = config_.window(layer);
  return shape;
}

UnitId Decoder::add_front_unit(const std::string& name) {
  front_units_.push_back(store().add_unit(name));
  return front_units_.back();
}

std::vector<UnitId> Decoder::forward_units() const {
  std::vector<UnitId> units = embedding_->lookup_units();
  if (positions_) {
    const std::vector<UnitId> more = positions_->lookup_units();
    units.insert(units.end(), more.begin(), more.end());
  }
  units.insert(units.end(), front_units_.begin(), front_units_.end());
  units.insert(units.end(), layer_units_.begin(), layer_units_.end());
  units.push_back(final_unit_);
  return units;
}

Variable Decoder::forward(Tape& tape, const ForwardOptions& options) {
  SHARDTUNE_ASSERT(options.context.batch != nullptr);
  SHARDTUNE_ASSERT(options.cache == nullptr || !tape.recording());
  auto pass = std::make_shared<Pass>();
  pass->options = options;
  pass->layers = layer_batch(options);
  pass->batch = pass->layers.batch;
  tape.keep(pass);
  if (options.extra_losses != nullptr)
    options.extra_losses->assign(layer_units_.size(), 0.0);
  if (options.cache != nullptr && !pass->layers.virtual_rows.empty()) {
    const int64_t count = std::ssize(pass->layers.virtual_rows) / std::ssize(pass->layers.samples);
    options.cache->add_virtual_tokens(count, pass->batch->sample_offsets);
  }
  Variable x = run_before_layers(tape, *pass, embed(tape, *pass));
  for (int i = 0; i < static_cast<int>(layer_units_.size()); ++i) {
    const auto body = [this, pass, i](Tape& inner, const Variable& input) {
      Variable output;
      inner.in_unit(layer_unit(i), [&] {
        output = run_layer(inner, *pass, i, input);
        add_extra_losses(inner, *pass, i);
      });
      return output;
    };
    x = options.gradient_checkpointing && tape.recording() ? tape.checkpoint(x, body)
                                                           : body(tape, x);
  }
  if (!pass->layers.token_rows.empty())
    x = autograd::gather_rows(tape, x, pass->layers.token_rows);
  Variable hidden;
  tape.in_unit(final_unit_, [&] {
    hidden = final_norm(tape, x);
    const ActivityScope activity(Activity::kAdapters);
    for (Hooks* hooks : options.hooks)
      hidden = hooks->before_head(tape, hidden, pass->at(-1));
  });
  return hidden;
}

Variable Decoder::embed(Tape& tape, const Pass& pass) const {
  const TokenBatch& batch = *pass.batch;
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw DataError("token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                      std::to_string(config_.vocab_size) +
                      ". Tokenizer and model do not belong together.");
    }
  }
  Variable tokens = embedding_->embed(tape, batch.ids);
  const std::vector<int32_t>& virtual_rows = pass.layers.virtual_rows;
  if (!virtual_rows.empty()) {
    Tensor zeros =
        Tensor::zeros(Shape{std::ssize(virtual_rows), config_.hidden_size}, DType::kFloat32);
    tokens = autograd::place_rows(tape, tokens, Variable::constant(std::move(zeros)), virtual_rows);
  }
  if (!positions_)
    return tokens;
  for (const int32_t position : batch.positions) {
    if (position >= positions_->vocab_size()) {
      throw DataError("position " + std::to_string(position) + " is outside the model's " +
                      std::to_string(positions_->vocab_size()) +
                      " learned positions. Use shorter samples.");
    }
  }
  return autograd::add(tape, tokens, positions_->embed(tape, batch.positions));
}

// Every pass leases the units, whether their hooks take part in it or not: the walk says so.
Variable Decoder::run_before_layers(Tape& tape, Pass& pass, Variable x) const {
  pass.shared.resize(pass.options.hooks.size());
  for (const UnitId unit : front_units_) {
    tape.in_unit(unit, [&] {
      const ActivityScope activity(Activity::kAdapters);
      for (size_t i = 0; i < pass.shared.size(); ++i) {
        Hooks& hooks = *pass.options.hooks[i];
        if (hooks.front_unit() != unit)
          continue;
        x = hooks.after_embedding(tape, x, pass.at(-1, i));
        pass.shared[i] = hooks.before_layers(tape, pass.at(-1, i));
        if (!pass.layers.virtual_rows.empty() && hooks.num_virtual_tokens() > 0)
          x = place_virtual_rows(tape, x, hooks.virtual_tokens(tape, pass.at(-1, i)), pass.layers);
      }
    });
  }
  return x;
}

// A recomputed layer puts the same value into the same place.
void Decoder::add_extra_losses(Tape& tape, const Pass& pass, int layer) const {
  if (pass.options.extra_losses == nullptr)
    return;
  const ActivityScope activity(Activity::kAdapters);
  double sum = 0.0;
  for (Hooks* hooks : pass.options.hooks) {
    const Variable loss = hooks->extra_loss(tape, pass.at(layer));
    if (!loss.defined())
      continue;
    sum += static_cast<double>(loss.value().data<const float>()[0]);
    tape.add_loss(loss);
  }
  (*pass.options.extra_losses)[static_cast<size_t>(layer)] = sum;
}

PrefixKv Decoder::prefix_of(Tape& tape, const Pass& pass, int layer) const {
  const ActivityScope activity(Activity::kAdapters);
  PrefixKv found;
  for (size_t i = 0; i < pass.options.hooks.size(); ++i) {
    PrefixKv prefix = pass.options.hooks[i]->prefix_kv(tape, pass.at(layer, i));
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

Variable Decoder::attend(Tape& tape, const Pass& pass, int index, AttentionInput input) const {
  const TokenBatch& batch = *pass.batch;
  const PrefixKv prefix = prefix_of(tape, pass, index);
  if (!inverse_frequencies_.empty()) {
    const kernels::RopeArgs rope{batch.positions, inverse_frequencies_};
    input.q = autograd::rope(tape, input.q, rope);
    input.k = autograd::rope(tape, input.k, rope);
  }
  Variable output;
  if (KvCache* cache = pass.options.cache) {
    if (prefix.k.defined())
      cache->set_prefix(index, prefix.k.value(), prefix.v.value());
    Tensor out(input.q.shape(), input.q.dtype());
    cache->attend(index, input.q.value(), input.k.value(), input.v.value(), out);
    output = Variable::constant(std::move(out));
  } else {
    output = autograd::attention(
        tape, {input.q, input.k, input.v, prefix.k, prefix.v, batch.sample_offsets},
        attention_shape(index));
  }
  for (Hooks* hooks : pass.options.hooks) {
    if (hooks->changes_attention()) {
      const ActivityScope activity(Activity::kAdapters);
      output = hooks->after_attention_scores(
          tape, {input.q, output, input.k_proj, input.v_proj, input.o_proj, input.qkv_proj},
          pass.at(index));
    }
  }
  return output;
}

Variable Decoder::apply(Tape& tape, const Pass& pass, int layer, const BaseLinear& linear,
                        const Variable& x) const {
  const PassContext context = pass.at(layer);
  const bool wrapped = std::ranges::any_of(
      pass.options.hooks, [&](const Hooks* hooks) { return hooks->wraps(linear); });
  Hooks::Next next(
      [&](const Variable& input) {
        return linear.forward(tape, input, wrapped ? DType::kFloat32 : input.dtype());
      },
      [&](const Variable& input, const Variable& seen, const autograd::LowRank& update) {
        return linear.forward_with_low_rank(tape, input, seen, update);
      });
  for (auto hooks = pass.options.hooks.rbegin(); hooks != pass.options.hooks.rend(); ++hooks) {
    if (!(*hooks)->wraps(linear))
      continue;
    next = Hooks::Next(
        tape, [&tape, &linear, &context, hooks = *hooks, inner = next](const Variable& input) {
          const ActivityScope activity(Activity::kAdapters);
          return hooks->on_linear(tape, linear, input, context, inner);
        });
  }
  return autograd::cast(tape, next(x), compute_dtype());
}

Variable Decoder::finish_branch(Tape& tape, const Pass& pass, int layer, BranchParts parts) const {
  const ActivityScope activity(Activity::kAdapters);
  for (Hooks* hooks : pass.options.hooks) {
    if (hooks->changes_branches())
      parts.output = hooks->after_branch(tape, parts, pass.at(layer));
  }
  return parts.output;
}

}  // namespace shardtune::models
