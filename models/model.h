// A causal language model behind one interface: embed, run the layers, end with the final norm;
// the head is separate, since losses and decoding want only some of its rows. Model code is
// single-device code at every ZeRO stage.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameter_store.h"
#include "core/token_batch.h"
#include "kernels/attention.h"
#include "models/base_linear.h"
#include "models/hooks.h"
#include "models/model_config.h"
#include "models/model_source.h"
#include "models/vocabulary_table.h"

namespace shardtune::models {

/// Where attention reads and writes keys and values in generation; inference implements it.
/// Tokens of one call belong to `sequences` (one entry per sample of the batch).
class KvCache {
 public:
  virtual ~KvCache() = default;
  /// Tokens of sample s already cached before this call (its first new token has this position).
  virtual int64_t past_length(int64_t sample) const = 0;
  /// K and V rows that stand before the first token of every sequence (hook 3); called before
  /// attend() whenever a prefix exists.
  virtual void set_prefix(int layer, const TensorView& prefix_k, const TensorView& prefix_v) {
    throw UnsupportedError("this key/value cache holds no prefix rows. See docs/status.md.");
  }
  /// The samples of this call have tokens as `sample_offsets` says, since those at their first
  /// tokens have `count` virtual tokens before them (hook 2).
  virtual void add_virtual_tokens(int64_t count, std::span<const int32_t> sample_offsets) {
    throw UnsupportedError("this key/value cache holds no virtual tokens. See docs/status.md.");
  }
  /// Appends k, v [T,Hk*D] (rotated) of `layer` for the batch's samples and computes attention of
  /// q [T,A*D] over everything cached, into out [T,A*D].
  virtual void attend(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                      const TensorView& out) = 0;
};

/// The rows that a batch of so many tokens is padded to in training, so that products meet few
/// distinct shapes: a multiple of 64, of 8 up to 64.
int64_t padded_tokens(int64_t num_tokens);

struct ForwardOptions {
  PassContext context;
  std::vector<Hooks*> hooks;            // called in order, the first outermost
  bool gradient_checkpointing = false;  // recompute each layer in backward
  KvCache* cache = nullptr;             // generation only; the tape must not record
  /// Hook (7) is asked when set, and its losses are put here, by layer; until backward has run.
  std::vector<double>* extra_losses = nullptr;
};

/// One tensor of the base that is trained, or a part of its rows.
struct TrainedTensor {
  std::string name;  // of the whole tensor: "model.norm.weight"
  ParameterId id = kNoParameter;
  int64_t first_row = 0;  // of what `id` holds
  Shape shape;            // of the whole tensor
  std::string tied;       // the head's name, where head and embedding are this one tensor
};

class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  DType compute_dtype() const { return compute_dtype_; }
  ParameterStore& store() const { return *store_; }
  /// All linears of the layers (not the head), in model order: what "all-linear" means.
  virtual std::vector<BaseLinear*> linears() = 0;
  /// All tables, by their tensors' names: the embedding first, then positions, then the head unless
  /// tied.
  virtual std::vector<const VocabularyTable*> tables() const = 0;
  /// Tensors of the base that are trained, in order of declaration.
  const std::vector<TrainedTensor>& trained_tensors() const { return trained_; }
  /// Heads, scale and window of a layer's attention.
  virtual kernels::AttentionShape attention_shape(int layer) const = 0;
  virtual UnitId layer_unit(int layer) const = 0;
  /// That of the final norm, leased last before the head.
  virtual UnitId final_unit() const = 0;
  /// A trained matrix [V,n], cut as the head is, each part in the unit of its chunk: columns that
  /// hooks put behind the hidden state meet it, and what it gives is added to the logits.
  virtual void add_head_columns(std::vector<ParameterId> chunks) = 0;
  /// Adds a unit that every pass leases before the layers, for Hooks::before_layers.
  virtual UnitId add_front_unit(const std::string& name) = 0;

  /// Final-norm output [T',H] in the compute dtype, or [T',H+n] with columns for the head; row t is
  /// the batch's token t. Without a cache T' is padded_tokens(T): the rows past T are padding
  /// without meaning.
  virtual Variable forward(Tape& tape, const ForwardOptions& options) = 0;
  /// The units that forward() leases, in order, and kFetchRows where it fetches embedding rows (a
  /// trained embedding is leased). The
  /// backward pass leases the units in reverse.
  virtual std::vector<UnitId> forward_units() const = 0;
  /// The head's table (the embedding itself when tied).
  virtual const VocabularyTable& head() const = 0;

 protected:
  Model(ParameterStore& store, DType compute_dtype)
      : store_(&store), compute_dtype_(compute_dtype) {}

  std::vector<TrainedTensor> trained_;

 private:
  ParameterStore* store_;
  DType compute_dtype_;
};

/// Parts of the base that are trained instead of frozen.
struct TrainedBase {
  enum class Kind { kLinear, kLinearBias, kNorm, kTable };
  /// By the tensor's name; empty: none.
  std::function<bool(const std::string& name, Kind kind)> trains;
  /// What becomes of a tied head where it or the embedding is trained: kShared trains one tensor as
  /// both; kSplit gives each its own, of which one may stay frozen (PEFT's default).
  enum class Tie { kSplit, kShared };
  Tie tie = Tie::kSplit;

  bool operator()(const std::string& name, Kind kind) const { return trains && trains(name, kind); }
};

struct LoadOptions {
  quant::QuantizationOptions quantization;
  TrainedBase trained = {};
  DType compute_dtype = DType::kFloat32;
  std::function<void(int64_t done, int64_t total)> progress;  // tensors; may be empty
};

/// Builds the family named by the source's config, declares its units and loads its weights.
/// Collective: every rank calls it; each reads only the tensors it publishes.
/// Errors  UnsupportedError: family, or a trained weight of a quantised linear; DataError: tensor
///         missing or of another shape
std::unique_ptr<Model> load_model(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options);

}  // namespace shardtune::models
