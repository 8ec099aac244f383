// AdamW as torch.optim.AdamW computes it: decay decoupled from the gradient and applied first,
// epsilon added after the root and its bias correction.
#pragma once

#include <memory>

#include "optim/optimizer.h"

namespace shardtune::optim {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

/// p *= 1 - lr*decay;  m += (1-beta1)(g - m);  v = beta2 v + (1-beta2) g g;
/// p -= lr/(1-beta1^t) * m / (sqrt(v)/sqrt(1-beta2^t) + eps)
/// Dtypes  f32; the scalars in fp64, rounded once to f32
/// Exact   no fused multiply-add: every instruction set writes the bits of adamw_step_plain
/// Source  Loshchilov and Hutter 2019, arXiv:1711.05101; torch 2.11 _single_tensor_adam
class AdamW : public Optimizer {
 public:
  /// ArgumentError: a beta outside [0, 1), eps not positive.
  explicit AdamW(AdamWOptions options);
  std::vector<std::string> state_names() const override;
  void step(std::span<const OptimizerSegment> segments, int64_t step) const override;

 private:
  AdamWOptions options_;
};

/// The oracle: the same update in plain code on one thread.
void adamw_step_plain(const AdamWOptions& options, const OptimizerSegment& segment, int64_t step);

/// Keys: betas ([0.9, 0.999]), eps (1e-8).
std::unique_ptr<Optimizer> make_adamw(const io::YamlNode& section);

}  // namespace shardtune::optim
