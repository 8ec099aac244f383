#include "objectives/objective.h"
#include "objectives/sft.h"

namespace shardtune::objectives {

const Registry<ObjectiveFactory>& objectives() {
  static const Registry<ObjectiveFactory> kObjectives(
      "training.objective", {{"sft", &make_next_token}, {"pretrain", &make_next_token}});
  return kObjectives;
}

}  // namespace shardtune::objectives
