// AdaLoRA's budget: which of the rank-one parts ("triplets": a row of A, an entry of E, a column of
// B) of all wrapped linears keep their entry of E. Importance is kept per element where the element
// is updated; sums over rows and columns are formed per chunk of kShardGranule elements in fp64 and
// added in order of chunks, so every rank finds the same triplets whatever it holds.
// Where one would guess wrong: E is zeroed but stays trained, so a triplet that lost its entry can
// win it back until total_step - tfinal; triplets whose score equals the threshold go as well.
// Source  Zhang et al. 2023, AdaLoRA, arXiv:2303.10512; PEFT's RankAllocator
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "models/hooks.h"

namespace shardtune::adapters {

struct RankSchedule {
  int64_t init_r = 12;
  int64_t target_r = 8;
  int64_t tinit = 0;
  int64_t tfinal = 0;
  int64_t deltaT = 1;
  int64_t total_step = 0;  // 0: that of the run
  double beta1 = 0.85;
  double beta2 = 0.85;

  int64_t last_allocation() const { return total_step - tfinal; }
  /// Whether step `step`, counted from 0, renews importance, or the choice of triplets.
  bool updates_importance(int64_t step) const { return step < last_allocation(); }
  bool allocates(int64_t step) const {
    return step == last_allocation() ||
           (step > tinit && step < last_allocation() && step % deltaT == 0);
  }
  /// Triplets that `num_linears` linears keep together at such a step: falls with the cube of the
  /// steps that are left.
  int64_t budget(int64_t step, int64_t num_linears) const;
};

class RankAllocator {
 public:
  /// Names of the states per element.
  static std::vector<std::string> element_states() { return {"exp_avg_ipt", "exp_avg_unc"}; }

  enum Factor : size_t { kA, kE, kB };
  struct Linear {
    std::array<ParameterId, 3> ids;  // by Factor
    int64_t in_features = 0;
    int64_t out_features = 0;
  };

  RankAllocator() = default;
  explicit RankAllocator(const RankSchedule& schedule) : schedule_(schedule) {}
  void add(const Linear& linear);
  const RankSchedule& schedule() const { return schedule_; }
  void set_total_step(int64_t total_step) { schedule_.total_step = total_step; }

  void on_update(int64_t step, const models::UpdatedRange& piece);
  /// Collective.
  void after_optimizer_step(int64_t step, std::span<const models::UpdatedRange> ranges,
                            const models::GatherChunks& gather);

  /// Per linear, in order of add(), one mark per triplet; empty before the first allocation.
  const std::vector<std::vector<uint8_t>>& kept() const { return kept_; }
  std::string state() const;
  /// DataError: not that of these linears.
  void load_state(const std::string& bytes);

 private:
  struct Place {
    size_t linear = 0;
    Factor factor = kA;
  };
  void add_up(const Place& place, const models::UpdatedRange& piece);
  std::vector<double> scores() const;
  void allocate(int64_t step, const models::GatherChunks& gather);

  RankSchedule schedule_;
  std::vector<Linear> linears_;
  std::map<ParameterId, Place> places_;
  /// Of element scores, per chunk and triplet; filled in steps that allocate.
  std::vector<std::array<std::vector<double>, 3>> sums_;
  std::vector<std::vector<uint8_t>> kept_;
};

}  // namespace shardtune::adapters
