// What the decoder families have in common: embed, run the layers unit by unit (recomputing them in
// backward when asked), end with the final norm; attention with or without a cache; the hooks. A
// family declares its parameters and writes one layer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "autograd/ops.h"
#include "models/loader.h"
#include "models/model.h"
#include "models/virtual_rows.h"

namespace shardtune::models {

class Decoder : public Model {
 public:
  const ModelConfig& config() const override { return config_; }
  UnitId layer_unit(int layer) const override { return layer_units_[static_cast<size_t>(layer)]; }
  UnitId final_unit() const override { return final_unit_; }
  void add_head_columns(std::vector<ParameterId> chunks) override {
    (head_ ? *head_ : *embedding_).add_columns(std::move(chunks));
  }
  UnitId add_front_unit(const std::string& name) override;
  const VocabularyTable& head() const override { return head_ ? *head_ : *embedding_; }
  std::vector<const VocabularyTable*> tables() const override;
  std::vector<BaseLinear*> linears() override;
  kernels::AttentionShape attention_shape(int layer) const override;
  Variable forward(Tape& tape, const ForwardOptions& options) override;
  std::vector<UnitId> forward_units() const override;

 protected:
  /// State of one forward pass, shared with the bodies that backward runs again.
  struct Pass {
    ForwardOptions options;
    LayerBatch layers;
    std::shared_ptr<const TokenBatch> batch;  // of layers
    std::vector<Variable> shared;             // of each of the hooks, from before the layers
    /// `hooks`: their place among options.hooks.
    PassContext at(int layer, size_t hooks = 0) const {
      PassContext context = options.context;
      context.batch = batch.get();
      context.layer = layer;
      if (hooks < shared.size())
        context.shared = shared[hooks];
      return context;
    }
  };
  /// Queries, keys and values of a layer, with the linears that hook (4) may use: k_proj and
  /// v_proj, or qkv_proj where they come from one.
  struct AttentionInput {
    Variable q, k, v;
    const BaseLinear* k_proj = nullptr;
    const BaseLinear* v_proj = nullptr;
    const BaseLinear* o_proj = nullptr;
    const BaseLinear* qkv_proj = nullptr;
  };

  Decoder(const ModelSource& source, ParameterStore& store, const LoadOptions& options)
      : Model(store, options.compute_dtype), config_(source.config()) {}

  struct Names {
    std::string embedding;   // "model.embed_tokens.weight"
    std::string layers;      // "model.layers": layer i is "model.layers.i"
    std::string final_norm;  // "model.norm"
    std::string head;        // "lm_head.weight"
  };
  /// Declares and loads everything; a family's constructor calls it when its own members stand.
  void load(const ModelSource& source, const LoadOptions& options, const Names& names);

  /// Declares the table of positions, where the family has one.
  virtual void declare_positions(Loader& loader) {}
  /// `layer` is "model.layers.3".
  virtual void declare_layer(Loader& loader, UnitId unit, const std::string& layer) = 0;
  virtual void declare_final_norm(Loader& loader, UnitId unit, const std::string& norm) = 0;

  virtual Variable run_layer(Tape& tape, const Pass& pass, int index,
                             const Variable& input) const = 0;
  virtual Variable final_norm(Tape& tape, const Variable& x) const = 0;

  /// A linear through the hooks that wrap it, in the compute dtype.
  Variable apply(Tape& tape, const Pass& pass, int layer, const BaseLinear& linear,
                 const Variable& x) const;
  /// Attention of q and k, rotated here in families that have frequencies, through the hooks.
  Variable attend(Tape& tape, const Pass& pass, int index, AttentionInput input) const;
  /// What is added to the residual, through the hooks.
  Variable finish_branch(Tape& tape, const Pass& pass, int layer, BranchParts parts) const;

  ModelConfig config_;
  /// Of the rotary embedding; empty: positions come from a table.
  std::vector<float> inverse_frequencies_;
  /// Learned positions, added to the token embeddings; null: none.
  std::unique_ptr<VocabularyTable> positions_;

 private:
  void load_head(Loader& loader, const LoadOptions& options, const Names& names);
  Variable embed(Tape& tape, const Pass& pass) const;
  /// x with the rows of virtual tokens in it.
  Variable run_before_layers(Tape& tape, Pass& pass, Variable x) const;
  void add_extra_losses(Tape& tape, const Pass& pass, int layer) const;
  PrefixKv prefix_of(Tape& tape, const Pass& pass, int layer) const;

  std::vector<std::unique_ptr<BaseLinear>> linears_;
  std::unique_ptr<VocabularyTable> embedding_;
  std::vector<UnitId> front_units_;
  std::vector<UnitId> layer_units_;
  UnitId final_unit_{};
  std::unique_ptr<VocabularyTable> head_;
};

}  // namespace shardtune::models
