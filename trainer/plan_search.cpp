#include "trainer/plan_search.h"

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

namespace shardtune::trainer {
namespace {

using parallel::FrozenPlace;
using parallel::ZeroStage;

constexpr size_t kMaxSuggestions = 3;
constexpr ZeroStage kStages[] = {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2, ZeroStage::k3};

/// Keys that differ, as options of the command line.
std::string options_of(const PlanChoice& choice, const PlanChoice& configured) {
  std::string text;
  const auto add = [&](const std::string& assignment) {
    text += (text.empty() ? "--set " : " --set ") + assignment;
  };
  if (choice.stage != configured.stage)
    add("parallel.zero_optimization.stage=" + std::to_string(static_cast<int>(choice.stage)));
  if (choice.base != configured.base)
    add(std::string("parallel.share_base_per_host=") +
        (choice.base == FrozenPlace::kHost ? "true" : "false"));
  if (choice.gradient_checkpointing != configured.gradient_checkpointing)
    add("training.gradient_checkpointing=true");
  if (choice.micro_batch_size != configured.micro_batch_size)
    add("training.micro_batch_size=" + std::to_string(choice.micro_batch_size));
  if (choice.quantization.method != configured.quantization.method)
    add("quantization.method=" + choice.quantization.method);
  if (choice.quantization.double_quant != configured.quantization.double_quant)
    add("quantization.double_quant=true");
  if (choice.max_length != configured.max_length)
    add("data.max_length=" + std::to_string(choice.max_length));
  return text;
}

enum class Change { kRecompute, kShareBase, kShardStates, kShardBase, kQuantise };

/// The configured choice with some changes made; nullopt where one of them changes nothing.
std::optional<PlanChoice> changed(PlanChoice choice, const std::vector<Change>& changes,
                                  int ranks) {
  for (const Change change : changes) {
    if (change == Change::kRecompute) {
      if (std::exchange(choice.gradient_checkpointing, true))
        return std::nullopt;
    } else if (change == Change::kShardStates || change == Change::kShardBase) {
      const ZeroStage stage = change == Change::kShardStates ? ZeroStage::k2 : ZeroStage::k3;
      if (ranks == 1 || choice.stage >= stage)
        return std::nullopt;
      choice = choice.at_stage(stage);
    } else if (change == Change::kShareBase) {
      if (ranks == 1 || choice.stage == ZeroStage::k3 || choice.base != FrozenPlace::kMemory)
        return std::nullopt;
      choice.base = FrozenPlace::kHost;
    } else {
      if (choice.quantization.method == "nf4")
        return std::nullopt;
      choice.quantization.method = "nf4";
      choice.quantization.double_quant = true;
    }
  }
  return choice;
}

enum class Shrink { kRowsFirst, kLengthFirst };

/// Lowers micro_batch_size and max_length by halves, one after the other, until the choice fits.
std::optional<RunPlan> shrink_until_it_fits(const PlanFunction& plan, PlanChoice choice,
                                            const HostLimit& host, Shrink shrink) {
  while (true) {
    RunPlan found = plan(choice);
    if (fits(found, host))
      return found;
    const bool has_rows = choice.micro_batch_size > 1;
    const bool has_length = choice.max_length >= 2 * choice.shortest_length;
    if (has_rows && (shrink == Shrink::kRowsFirst || !has_length))
      choice.micro_batch_size /= 2;
    else if (has_length)
      choice.max_length /= 2;
    else
      return std::nullopt;
  }
}

}  // namespace

bool fits_swap(const RunPlan& plan, const HostLimit& host) {
  const SwapBytes need = plan.host_swap(host.ranks);
  if (host.swap.is_one_disk)
    return need.base + need.states <= std::min(host.swap.base, host.swap.states);
  return need.base <= host.swap.base && need.states <= host.swap.states;
}

PlanFunction plan_function(const Job& job, const RankPlacement& placement,
                           const ProcessBytes& process) {
  using Key = std::tuple<ZeroStage, bool, int64_t, int64_t, std::string, FrozenPlace>;
  auto known = std::make_shared<std::map<Key, RunPlan>>();
  return [&job, placement, process, known](const PlanChoice& choice) {
    const Key key(choice.stage, choice.gradient_checkpointing, choice.micro_batch_size,
                  choice.max_length, choice.quantization.method, choice.base);
    const auto found = known->find(key);
    if (found != known->end())
      return found->second;
    return known->emplace(key, plan_run(job, choice, placement, process)).first->second;
  };
}

std::optional<RunPlan> cheapest_that_fits(const PlanFunction& plan, const PlanChoice& configured,
                                          const HostLimit& host) {
  std::vector<PlanChoice> micro_batches;
  for (PlanChoice choice = configured; choice.micro_batch_size >= 1; choice.micro_batch_size /= 2)
    micro_batches.push_back(choice);
  for (const bool recompute : {false, true}) {
    // A smaller micro-batch needs less: from the first that fits on, all do.
    for (PlanChoice choice : micro_batches) {
      choice.gradient_checkpointing = recompute;
      std::vector<RunPlan> fitting;
      for (const ZeroStage stage : kStages) {
        RunPlan found = plan(choice.at_stage(stage));
        if (fits(found, host))
          fitting.push_back(std::move(found));
        if (fitting.size() == 1 && fitting[0].ranks == 1)
          break;  // one rank has nothing to share out
      }
      const auto cost = [&](const RunPlan& each) {
        return std::tuple(each.step_traffic.sent_bytes(),
                          each.choice.stage == configured.stage ? 0 : 1);
      };
      const auto best =
          std::min_element(fitting.begin(), fitting.end(),
                           [&](const RunPlan& a, const RunPlan& b) { return cost(a) < cost(b); });
      if (best != fitting.end())
        return *best;
    }
  }
  return std::nullopt;
}

std::vector<Suggestion> suggest(const PlanFunction& plan, const PlanChoice& configured,
                                const HostLimit& host) {
  using enum Change;
  std::vector<std::vector<Change>> sets = {{}, {kRecompute}, {kQuantise}, {kRecompute, kQuantise}};
  for (const Change shard : {kShardStates, kShareBase, kShardBase}) {
    sets.push_back({shard});
    sets.push_back({kRecompute, shard});
    sets.push_back({shard, kQuantise});
    sets.push_back({kRecompute, shard, kQuantise});
  }
  std::vector<Suggestion> found;
  const auto add = [&](const PlanChoice& choice, Shrink shrink) {
    const auto fitting = shrink_until_it_fits(plan, choice, host, shrink);
    if (!fitting)
      return;
    const std::string options = options_of(fitting->choice, configured);
    if (std::ranges::find(found, options, &Suggestion::options) == found.end())
      found.push_back({options, *fitting});
  };
  for (const Shrink shrink : {Shrink::kRowsFirst, Shrink::kLengthFirst}) {
    for (const auto& changes : sets) {
      if (const auto choice = changed(configured, changes, plan(configured).ranks))
        add(*choice, shrink);
    }
  }
  // Those that keep the data as it is first, then the fewest keys.
  std::stable_sort(found.begin(), found.end(), [&](const Suggestion& a, const Suggestion& b) {
    const auto rank_of = [&](const Suggestion& each) {
      return std::tuple(each.plan.choice.max_length != configured.max_length,
                        std::count(each.options.begin(), each.options.end(), '='));
    };
    return rank_of(a) < rank_of(b);
  });
  if (found.size() > kMaxSuggestions)
    found.resize(kMaxSuggestions);
  return found;
}

}  // namespace shardtune::trainer
