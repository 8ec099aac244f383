// Several LoRA adapters of one base as one, from their folders alone: PEFT's add_weighted_adapter.
// The change of a weight is delta = sum of w_i s_i B_i A_i, s the adapter's own scale. `cat` holds
// it exactly in a rank that is the sum of theirs, `svd` the nearest of a smaller rank, `linear`
// adds A and B themselves, which is an approximation.
#pragma once

#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/json.h"

namespace shardtune::adapters {

enum class CombinationType { kLinear, kCat, kSvd };
/// ConfigError: no such word.
CombinationType combination_type(const std::string& word);

struct Combination {
  CombinationType type = CombinationType::kSvd;
  std::vector<double> weights;  // one for each folder, of either sign
  int64_t svd_rank = 0;         // 0: the largest of theirs
};

struct CombinedTensor {
  std::string key;  // PEFT's
  Shape shape;
  std::vector<float> values;
};
struct CombinedAdapter {
  io::Json config;  // adapter_config.json
  std::vector<CombinedTensor> tensors;
};

/// Errors  ConfigError: fewer than two folders, another number of weights, ranks that `linear`
///         cannot add; UnsupportedError: another method than LoRA, DoRA, a base that is trained
///         too; DataError: damaged folder, tensors of different bases
CombinedAdapter combine_adapters(const std::vector<std::string>& folders,
                                 const Combination& combination, const std::string& base_model);

}  // namespace shardtune::adapters
