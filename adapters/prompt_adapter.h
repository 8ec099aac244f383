// What methods that lay virtual tokens before every sample have in common: the tokens take rows of
// the batch and positions from 0 on, their embeddings come from a unit of the adapter's own, and
// nothing can be merged.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter_base.h"

namespace shardtune::adapters {

class PromptAdapter : public AdapterBase {
 public:
  PromptAdapter(int64_t num_virtual_tokens, models::Model& model)
      : AdapterBase(model),
        num_virtual_tokens_(num_virtual_tokens),
        unit_(model.add_front_unit("prompt_encoder")) {}

  int64_t num_virtual_tokens() const override { return num_virtual_tokens_; }
  std::optional<UnitId> front_unit() const override { return unit_; }
  bool mergeable() const override { return false; }
  std::string why_not_mergeable() const override { return "it adds tokens"; }
  void merge_rows(const models::BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

 protected:
  ParameterId declare_prompt(const std::string& name, Shape shape, Initializer initial) {
    return declare({unit_, name, shape, std::move(initial), Reads::kNothing, ""});
  }
  /// N(0,1), or what initialize_from() is given.
  Initializer started_embeddings() const {
    return [this](const CounterRng& rng, std::span<float> values) {
      if (start_.empty())
        normal_values(1.0f)(rng, values);
      else
        std::ranges::copy(start_.span<const float>(), values.begin());
    };
  }
  void initialize_from(Tensor start, const InitContext& context) {
    start_ = std::move(start);
    AdapterBase::initialize(context);
    start_ = {};
  }
  int64_t width() const { return model().config().hidden_size; }
  autograd::Variable parameter(autograd::Tape& tape, size_t i) const {
    return tape.parameter(tensors()[i].id);
  }
  /// Members that PEFT writes for all of them.
  std::vector<std::pair<std::string, io::Json>> prompt_config() const {
    const models::ModelConfig& config = model().config();
    return {{"modules_to_save", nullptr},
            {"num_attention_heads", config.num_heads},
            {"num_layers", config.num_layers},
            {"num_transformer_submodules", 1},
            {"num_virtual_tokens", num_virtual_tokens_},
            {"token_dim", config.hidden_size}};
  }

 private:
  int64_t num_virtual_tokens_;
  UnitId unit_;
  Tensor start_;  // while initial values are written
};

}  // namespace shardtune::adapters
