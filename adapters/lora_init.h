// Starts of LoRA that factor matrices: by the singular vectors of the weight (PiSSA) or of what
// quantisation took from it (LoftQ, one iteration: the base stays), by its QR factors (OLoRA), or
// by halves of a random orthogonal matrix. Computed by the tensor's publisher on one thread. Source
// Meng et al. 2024, PiSSA, arXiv:2404.02948; Bueyuekakyuez 2024, OLoRA, arXiv:2406.01775; Li et al.
// 2023, LoftQ, arXiv:2310.08659
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/lora_options.h"
#include "core/rng.h"
#include "models/base_linear.h"
#include "models/model_source.h"

namespace shardtune::adapters {

/// A [r,in] and B [out,r], row by row.
struct LoraFactors {
  std::vector<float> lora_A;
  std::vector<float> lora_B;
};

struct LoraFactorRequest {
  LoraInit init = LoraInit::kPissa;
  int64_t rank = 0;
  double scale = 1.0;
  int64_t niter = 0;                            // of PiSSA: subspace iterations, 0 = exact
  CounterRng rng{0};                            // of random starts
  const models::ModelSource* source = nullptr;  // the weights before they were quantised: LoftQ
};

/// Factors of a linear's start; its unit must be leased. The sign of each pair of vectors is chosen
/// so that the element of A with the largest magnitude is positive.
LoraFactors factor_lora_start(const models::BaseLinear& linear, const LoraFactorRequest& request);

/// [p; start] of A, or [p, -start] of B by columns; p alone without a start.
Tensor with_start(const TensorView& p, const Tensor* start, bool by_columns);
/// The same for a factor of the saved folder.
void add_start(SavedTensor& tensor, bool is_a, const std::shared_ptr<Tensor>& start);

}  // namespace shardtune::adapters
