// The eight points where something may change a model's computation or a step (DESIGN section 8.7).
// Models call them and name no method; adapters implement them, and so does the trainer when it
// captures activations. Every default leaves the model as it is.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "core/token_batch.h"

namespace shardtune::autograd {
struct LowRank;
}

namespace shardtune::models {

using autograd::Tape;
using autograd::Variable;

class BaseLinear;

/// What a forward pass is about: keys of random numbers and the mode.
enum class Mode { kTraining, kInference };
struct PassContext {
  const TokenBatch* batch = nullptr;
  Mode mode = Mode::kInference;
  uint64_t seed = 0;  // of the run
  int64_t step = 0;   // optimizer step, keys dropout
  int layer = -1;     // current layer, -1 outside
  Variable shared;    // what before_layers() of the same hooks returned
};

/// K and V rows that every token of every sample attends to (prefix tuning): [n, Hk*D], not
/// rotated.
struct PrefixKv {
  Variable k;
  Variable v;
};

/// What hook (4) sees of one attention.
struct AttentionParts {
  Variable q_rotated;  // [T, A*D]
  Variable output;     // [T, A*D], before the output projection
  const BaseLinear* k_proj = nullptr;
  const BaseLinear* v_proj = nullptr;
  const BaseLinear* o_proj = nullptr;
  const BaseLinear* qkv_proj = nullptr;  // where q, k and v come from one; k_proj, v_proj are null
};

enum class Branch { kAttention, kMlp };

/// What hook (5) sees: the branch's input before its norm (= the residual), its output, and which.
struct BranchParts {
  Branch branch = Branch::kAttention;
  Variable input;   // [T,H] f32, the residual stream before the branch
  Variable output;  // [T,H], to be added to the residual
};

/// A local range of one trainable, or a piece of it, as hook (6) sees it after the optimizer step.
/// It begins at a multiple of kernels::kShardGranule elements, as every rank's ranges do.
struct UpdatedRange {
  ParameterId id = kNoParameter;
  int64_t begin = 0;
  std::span<float> parameter;
  std::span<const float> clipped_gradient;
  std::vector<std::span<float>> states;  // of on_update alone: the hooks' own, per element
};

/// `per_chunk` numbers for each chunk of kShardGranule elements of one trainable, all chunks in
/// order; a rank fills in those of its own ranges.
struct ChunkValues {
  ParameterId id = kNoParameter;
  int64_t per_chunk = 0;
  std::span<double> values;
};
/// Brings the chunks of all ranks together. Collective.
using GatherChunks = std::function<void(std::span<const ChunkValues> values)>;

/// Named bytes for a checkpoint, beyond trainables and optimizer states.
struct NamedState {
  std::string name;
  std::string bytes;
};

class Hooks {
 public:
  virtual ~Hooks() = default;

  /// (1) Replaces a linear: x [T,in] -> y [T,out]. `next` runs the linear as it is without this
  /// hook (the base, or an inner hook); the base comes in f32, so that what a hook adds is not lost
  /// in rounding. The model rounds what is returned to the compute dtype.
  class Next {
   public:
    using Call = std::function<Variable(const Variable& x)>;
    using CallWithLowRank = std::function<Variable(const Variable& x, const Variable& seen,
                                                   const autograd::LowRank& update)>;
    Next(Call call, CallWithLowRank with_low_rank)
        : call_(std::move(call)), with_low_rank_(std::move(with_low_rank)) {}
    /// Adds a low-rank update to what `call` returns.
    Next(Tape& tape, Call call);
    Variable operator()(const Variable& x) const { return call_(x); }
    /// The linear on x plus a low-rank update of `seen` (autograd::low_rank_update), made by the
    /// base in one pass.
    Variable with_low_rank(const Variable& x, const Variable& seen,
                           const autograd::LowRank& update) const {
      return with_low_rank_(x, seen, update);
    }

   private:
    Call call_;
    CallWithLowRank with_low_rank_;
  };
  virtual Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                             const PassContext& context, const Next& next) {
    return next(x);
  }
  /// Whether on_linear changes this linear; lets the model skip the call.
  virtual bool wraps(const BaseLinear& linear) const { return false; }

  /// (2) Virtual tokens per sample, laid before the embedded tokens. `data` reserves room for them.
  virtual int64_t num_virtual_tokens() const { return 0; }
  /// Their embeddings [num_virtual_tokens, H] f32, the same for each sample, or those of every task
  /// in turn, of which a sample takes its own. Called in front_unit() when num_virtual_tokens() >
  /// 0.
  virtual Variable virtual_tokens(Tape& tape, const PassContext& context) { return {}; }

  /// x [T,H] f32, the embedded tokens of context.batch, as they go on. Called in front_unit().
  virtual Variable after_embedding(Tape& tape, const Variable& x, const PassContext& context) {
    return x;
  }
  /// hidden [T,H] as the head takes it: itself, or with the columns behind it that
  /// Model::add_head_columns is about. Called in Model::final_unit().
  virtual Variable before_head(Tape& tape, const Variable& hidden, const PassContext& context) {
    return hidden;
  }

  /// Work of a pass before its layers, in a unit of the hooks' own (Model::add_front_unit): what
  /// they find in PassContext::shared later.
  virtual std::optional<UnitId> front_unit() const { return std::nullopt; }
  virtual Variable before_layers(Tape& tape, const PassContext& context) { return {}; }

  /// Positions of the model's context that stand before every sample: its tokens move by as many.
  virtual int64_t num_positions() const { return num_virtual_tokens(); }

  /// (3) Prefix K/V of a layer; k undefined means none.
  virtual PrefixKv prefix_kv(Tape& tape, const PassContext& context) { return {}; }

  /// (4) After the attention of a layer; returns what goes into the output projection.
  virtual Variable after_attention_scores(Tape& tape, const AttentionParts& parts,
                                          const PassContext& context) {
    return parts.output;
  }
  virtual bool changes_attention() const { return false; }

  /// (5) After a branch; returns what is added to the residual.
  virtual Variable after_branch(Tape& tape, const BranchParts& parts, const PassContext& context) {
    return parts.output;
  }
  virtual bool changes_branches() const { return false; }

  /// (6) After the optimizer step, on every rank for its own ranges, `step` counted from 0. First
  /// piece by piece, with states per element that are sharded, offloaded and saved as the
  /// optimizer's are; pieces without a gradient are left out.
  virtual void on_update(int64_t step, const UpdatedRange& piece) {}
  /// Then once, with whole ranges: what it writes into them is published. Collective.
  virtual void after_optimizer_step(int64_t step, std::span<const UpdatedRange> ranges,
                                    const GatherChunks& gather) {}

  /// (7) An extra loss [1] of each layer's trainables, its unit leased (context.layer), once per
  /// step: part of global micro-batch 0. Undefined means none.
  virtual Variable extra_loss(Tape& tape, const PassContext& context) { return {}; }

  /// (8) State beyond trainables for checkpoints.
  virtual std::vector<NamedState> named_state() const { return {}; }
  virtual void load_named_state(const std::vector<NamedState>& state) {}
};

}  // namespace shardtune::models
