// SGD as torch.optim.SGD computes it: decay added to the gradient, momentum over the decayed
// gradient, the first step's buffer the gradient itself.
#pragma once

#include <memory>

#include "optim/optimizer.h"

namespace shardtune::optim {

struct SgdOptions {
  double momentum = 0.0;
  double dampening = 0.0;
  bool nesterov = false;
};

/// d = g + decay p;  b = d at step 1, else momentum b + (1-dampening) d;
/// p -= lr (d + momentum b) with nesterov, lr b with momentum alone, lr d without
/// With dampening a parameter whose first gradient comes after step 1 starts at (1-dampening) d,
/// where torch starts at d.
/// Dtypes  f32; the scalars in fp64, rounded once to f32
/// Exact   no fused multiply-add; bits depend neither on shards nor on threads
/// Source  Sutskever et al. 2013; torch 2.11 _single_tensor_sgd
class Sgd : public Optimizer {
 public:
  /// ArgumentError: momentum or dampening outside [0, 1), nesterov without momentum or with
  /// dampening.
  explicit Sgd(SgdOptions options);
  /// {"momentum_buffer"}, none without momentum.
  std::vector<std::string> state_names() const override;
  void step(std::span<const OptimizerSegment> segments, int64_t step) const override;

 private:
  SgdOptions options_;
};

/// Keys: momentum (0), dampening (0), nesterov (false).
std::unique_ptr<Optimizer> make_sgd(const io::YamlNode& section);

}  // namespace shardtune::optim
