#include "adapters/eva_ranks.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "adapters/eva.h"
#include "adapters/linear_adapter.h"
#include "core/log.h"

namespace shardtune::adapters {

namespace {

using models::BaseLinear;

constexpr const char* kStateName = "lora.eva_ranks";

/// What one linear may get, before the data is seen.
struct Claim {
  const BaseLinear* linear = nullptr;
  int64_t asked = 0;  // of the budget
  int64_t most = 0;
};

// Python's round(), which PEFT takes.
int64_t most_of(int64_t rank, double rho, const BaseLinear& linear) {
  const auto most = static_cast<int64_t>(std::nearbyint(static_cast<double>(rank) * rho));
  return std::min({most, linear.in_features(), linear.out_features()});
}

// `largest_rank`: of the linears that take the same inputs; they share what they may get.
std::vector<Claim> claims_of(const LoraOptions& options, models::Model& model,
                             const std::vector<int64_t>& largest_rank = {}) {
  std::vector<Claim> claims;
  for (const BaseLinear* linear : match_target_modules(options.targets, model, Tables::kChanged)) {
    Claim claim{linear, options.rank_of(linear->path()), 0};
    check_rank("lora_rank", claim.asked, *linear);
    const int64_t rank =
        largest_rank.empty() ? claim.asked : std::max(claim.asked, largest_rank[claims.size()]);
    claim.most = most_of(rank, options.eva.rho, *linear);
    claims.push_back(claim);
  }
  return claims;
}

int64_t budget_of(const std::vector<Claim>& claims) {
  return std::transform_reduce(claims.begin(), claims.end(), int64_t{0}, std::plus<>(),
                               [](const Claim& claim) { return claim.asked; });
}

/// The options with these ranks instead of theirs, and the scales that PEFT gives them.
LoraOptions with_ranks(const LoraOptions& options, const std::vector<Claim>& claims,
                       const std::vector<int64_t>& ranks) {
  LoraOptions fitted = options;
  fitted.has_eva_ranks = true;
  fitted.rank_pattern.clear();
  fitted.alpha_pattern.clear();
  for (size_t i = 0; i < claims.size(); ++i) {
    const std::string& path = claims[i].linear->path();
    double alpha = pattern_value(options.alpha_pattern, path, options.lora_alpha);
    if (options.eva.adjust_scaling_factors)
      alpha *= static_cast<double>(ranks[i]) / static_cast<double>(claims[i].asked);
    if (ranks[i] != options.lora_rank)
      fitted.rank_pattern.emplace_back(path, static_cast<double>(ranks[i]));
    if (ranks[i] > 0 && alpha != options.lora_alpha)
      fitted.alpha_pattern.emplace_back(path, alpha);
  }
  return fitted;
}

void log_ranks(const std::vector<int64_t>& ranks, int64_t budget) {
  const auto [least, most] = std::ranges::minmax_element(ranks);
  log_info("eva: a rank of " + std::to_string(budget) + " over " + std::to_string(ranks.size()) +
           " linears: " + std::to_string(*least) + " to " + std::to_string(*most) + ", " +
           std::to_string(std::ranges::count(ranks, 0)) + " without an adapter");
}

}  // namespace

std::vector<int64_t> share_ranks(const std::vector<std::vector<double>>& ratios, int64_t budget) {
  std::vector<std::pair<double, size_t>> all;
  for (size_t i = 0; i < ratios.size(); ++i) {
    for (const double ratio : ratios[i])
      all.emplace_back(ratio, i);
  }
  std::ranges::stable_sort(all, std::ranges::greater(), &std::pair<double, size_t>::first);
  std::vector<int64_t> ranks(ratios.size(), 0);
  for (size_t i = 0; i < all.size() && std::cmp_less(i, budget); ++i)
    ++ranks[all[i].second];
  return ranks;
}

std::optional<LoraOptions> eva_fitted_to_data(const LoraOptions& options, models::Model& model,
                                              const InitContext& context) {
  std::vector<EvaTarget> targets;
  for (const Claim& claim : claims_of(options, model))
    targets.push_back({claim.linear, claim.most});
  const auto found =
      eva_directions(std::ssize(model.linears()), targets, context, options.eva.use_label_mask);
  if (found.empty())
    return std::nullopt;
  std::map<const EvaDirections*, int64_t> largest;
  for (size_t i = 0; i < targets.size(); ++i) {
    int64_t& rank = largest[found[i].get()];
    rank = std::max(rank, options.rank_of(targets[i].linear->path()));
  }
  std::vector<int64_t> largest_rank;
  for (const auto& directions : found)
    largest_rank.push_back(largest[directions.get()]);
  const std::vector<Claim> claims = claims_of(options, model, largest_rank);
  std::vector<std::vector<double>> ratios(claims.size());
  for (size_t i = 0; i < claims.size(); ++i) {
    const auto most = std::min(static_cast<size_t>(claims[i].most), found[i]->variances.size());
    for (size_t k = 0; k < most; ++k)
      ratios[i].push_back(found[i]->ratio(k));
  }
  const std::vector<int64_t> ranks = share_ranks(ratios, budget_of(claims));
  log_ranks(ranks, budget_of(claims));
  LoraOptions fitted = with_ranks(options, claims, ranks);
  const auto start = std::make_shared<EvaStart>();
  for (size_t i = 0; i < claims.size(); ++i)
    start->emplace(
        claims[i].linear->path(),
        eva_start_of(*found[i], ranks[i], claims[i].linear->in_features(), options.eva.whiten));
  fitted.eva_start = start;
  return fitted;
}

// A rank costs the same at every place of a linear: those with the largest sides get all they may.
LoraOptions eva_with_most_bytes(const LoraOptions& options, models::Model& model) {
  int64_t largest_rank = 0;
  for (const Claim& claim : claims_of(options, model))
    largest_rank = std::max(largest_rank, claim.asked);
  const auto num_claims = claims_of(options, model).size();
  const std::vector<Claim> claims =
      claims_of(options, model, std::vector<int64_t>(num_claims, largest_rank));
  std::vector<std::vector<double>> sides;
  for (const Claim& claim : claims)
    sides.emplace_back(claim.most, claim.linear->in_features() + claim.linear->out_features());
  LoraOptions planned = with_ranks(options, claims, share_ranks(sides, budget_of(claims)));
  planned.has_eva_ranks = false;  // not the data's
  return planned;
}

std::vector<models::NamedState> eva_states(const LoraOptions& options, models::Model& model) {
  if (!options.has_eva_ranks)
    return {};
  io::Json ranks = io::Json::object();
  for (const BaseLinear* linear : match_target_modules(options.targets, model, Tables::kChanged))
    ranks.set(linear->path(), options.rank_of(linear->path()));
  return {{kStateName, ranks.dump()}};
}

LoraOptions eva_fitted_as(const LoraOptions& options, models::Model& model,
                          const std::vector<models::NamedState>& states) {
  const std::string where = "checkpoint: state.json: ranks of eva";
  const auto state = std::ranges::find(states, kStateName, &models::NamedState::name);
  if (state == states.end())
    throw DataError(where +
                    ": expected those of every linear, found none. Start over with "
                    "--resume never.");
  const io::Json saved = io::parse_json(state->bytes, where);
  const auto refuse = [&](const std::string& what) {
    throw DataError(where + ": " + what + ". Use the configuration the checkpoint was made with.");
  };
  if (!saved.is_object())
    refuse("expected an object, found " + std::string(saved.type_name()));
  const std::vector<Claim> claims = claims_of(options, model);
  if (saved.as_object().size() != claims.size())
    refuse("expected " + std::to_string(claims.size()) + " linears, found " +
           std::to_string(saved.as_object().size()));
  std::vector<int64_t> ranks;
  for (const Claim& claim : claims) {
    const io::Json* rank = saved.find(claim.linear->path());
    const int64_t narrow = std::min(claim.linear->in_features(), claim.linear->out_features());
    if (rank == nullptr || !rank->is_integer() || rank->as_integer() < 0 ||
        rank->as_integer() > narrow)
      refuse(claim.linear->path() + ": expected a rank from 0 to " + std::to_string(narrow));
    ranks.push_back(rank->as_integer());
  }
  return with_ranks(options, claims, ranks);
}

}  // namespace shardtune::adapters
