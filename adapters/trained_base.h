// Parts of the base that are trained beside an adapter, or alone: `bias`, `modules_to_save` (a full
// copy of a module) and the methods bitfit, freeze and full. The model holds such tensors as
// trainables instead of frozen ones (models::TrainedBase); here is which, and how PEFT names them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "adapters/option_reader.h"
#include "models/model.h"

namespace shardtune::adapters {

struct TrainedParts {
  /// Of the base: none, all, or those of the linears that the adapter changes.
  enum class Bias { kNone, kAll, kOnly };
  Bias bias = Bias::kNone;
  /// The method's word for them: "lora_only"; empty: it has no such key.
  std::string only_word;
  /// Ends of the paths of modules that are trained whole, as PEFT matches them.
  std::vector<std::string> modules_to_save;
  bool ensure_weight_tying = false;

  bool is_none() const { return bias == Bias::kNone && modules_to_save.empty(); }
};

/// modules_to_save and, with an only_word, `bias`.
TrainedParts read_trained_parts(const OptionReader& reader, std::string_view only_word);
std::vector<std::pair<std::string, std::string>> trained_keys(const TrainedParts& parts);
/// What PEFT writes for `bias`.
std::string bias_word(const TrainedParts& parts);

/// Whether a tensor lies in one of modules_to_save.
bool is_in_modules(const std::vector<std::string>& modules, const std::string& tensor);

/// ConfigError: a name of modules_to_save that matches no tensor of the model (lists modules).
void check_modules(const std::vector<std::string>& modules, const models::Model& model);

}  // namespace shardtune::adapters
