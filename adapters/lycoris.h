// What LoHa and LoKr share: options, and a change of the weight that is built from small factors
// and multiplied as a whole.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "adapters/linear_adapter.h"

namespace shardtune::adapters {

struct LycorisOptions {
  int64_t r = 8;
  double alpha = 8.0;
  double rank_dropout = 0.0;        // of outputs of the change
  bool rank_dropout_scale = false;  // whether those that are left grow by what is dropped
  double module_dropout = 0.0;      // of the whole change
  Pattern rank_pattern;
  Pattern alpha_pattern;
  TargetModules targets;
  bool is_new = true;

  int64_t rank_of(const std::string& path) const;
  float scale_of(const std::string& path) const;
  std::vector<std::pair<std::string, std::string>> keys() const;
};
LycorisOptions parse_lycoris(const OptionReader& reader);

/// y = W x + scale * D x. In training, for each micro-batch: module_dropout leaves the change of a
/// linear out, rank_dropout leaves rows of D out.
class LycorisAdapter : public LinearAdapter {
 public:
  LycorisAdapter(LycorisOptions options, models::Model& model)
      : LinearAdapter(model), options_(std::move(options)) {}

  autograd::Variable on_linear(autograd::Tape& tape, const models::BaseLinear& linear,
                               const autograd::Variable& x, const models::PassContext& context,
                               const Next& next) override;
  void merge_rows(const models::BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override;

 protected:
  autograd::Variable drop_outputs(autograd::Tape& tape, const models::BaseLinear& linear,
                                  const autograd::Variable& y,
                                  const models::PassContext& context) const;
  /// D [out,in] f32 of a linear.
  virtual autograd::Variable change(autograd::Tape& tape,
                                    const models::BaseLinear& linear) const = 0;
  /// Members that PEFT writes for both.
  std::vector<std::pair<std::string, io::Json>> lycoris_config() const;
  const LycorisOptions& options() const { return options_; }

 private:
  LycorisOptions options_;
};

}  // namespace shardtune::adapters
