#include "trainer/metrics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace shardtune::trainer {

namespace {

std::string number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}
std::string exact(double value) { return number("%.9g", value); }

/// {"linears": value(0), "attention": value(1), ...}
template <typename Value>
std::string by_activity(const Value& value) {
  std::string text;
  for (size_t i = 0; i < kNumActivities; ++i) {
    text += (i == 0 ? "{\"" : ", \"") + std::string(name_of(static_cast<Activity>(i))) +
            "\": " + value(i);
  }
  return text + "}";
}

std::string milliseconds(double seconds) { return number("%.3f", seconds * 1e3); }

std::string times_of_ranks(const std::vector<RankStep>& ranks) {
  std::string text =
      ", \"time_ms\": " + by_activity([&](size_t i) { return milliseconds(ranks[0].times[i]); });
  if (ranks.size() == 1)
    return text;
  if (ranks.size() <= kMaxListedRanks) {
    return text + ", \"rank_time_ms\": " + by_activity([&](size_t i) {
             std::string list;
             for (const RankStep& rank : ranks)
               list += (list.empty() ? "[" : ", ") + milliseconds(rank.times[i]);
             return list + "]";
           });
  }
  const auto time_of = [](size_t i) { return [i](const RankStep& rank) { return rank.times[i]; }; };
  const auto least = [&](size_t i) {
    return milliseconds(std::ranges::min(ranks, {}, time_of(i)).times[i]);
  };
  const auto most = [&](size_t i) {
    return milliseconds(std::ranges::max(ranks, {}, time_of(i)).times[i]);
  };
  return text + ", \"time_ms_min\": " + by_activity(least) +
         ", \"time_ms_max\": " + by_activity(most);
}

}  // namespace

std::optional<double> joules_of_step(const StepMetrics& metrics) {
  double joules = 0.0;
  for (const RankStep& rank : metrics.ranks)
    joules += rank.joules;
  return std::isfinite(joules) ? std::optional(joules) : std::nullopt;
}

Scalars scalars_of(const StepMetrics& metrics, double epoch) {
  const StepResult& result = metrics.result;
  const auto f32 = [](double value) { return static_cast<float>(value); };
  Scalars scalars = {
      {"train/loss", f32(result.loss)},
      {"train/grad_norm", f32(result.grad_norm)},
      {"train/learning_rate", f32(result.learning_rate)},
      {"train/epoch", f32(epoch)},
      {"train/tokens_per_second", f32(static_cast<double>(result.num_tokens) / metrics.seconds)}};
  if (result.extra_loss != 0.0)
    scalars.emplace_back("train/extra_loss", f32(result.extra_loss));
  if (metrics.eval_loss)
    scalars.emplace_back("eval/loss", f32(*metrics.eval_loss));
  return scalars;
}

std::string metrics_line(const StepMetrics& metrics) {
  const StepResult& result = metrics.result;
  const int64_t peak =
      std::ranges::max(metrics.ranks, {}, &RankStep::peak_rss_bytes).peak_rss_bytes;
  std::string line =
      "{\"step\": " + std::to_string(metrics.step) + ", \"loss\": " + exact(result.loss) +
      (result.extra_loss != 0.0 ? ", \"extra_loss\": " + exact(result.extra_loss) : "") +
      ", \"grad_norm\": " + exact(result.grad_norm) +
      ", \"learning_rate\": " + exact(result.learning_rate) +
      ", \"tokens\": " + std::to_string(result.num_tokens) + ", \"tokens_per_second\": " +
      exact(static_cast<double>(result.num_tokens) / metrics.seconds) +
      ", \"step_time_ms\": " + exact(metrics.seconds * 1e3) +
      ", \"prefetch_cpu_ms\": " + exact(metrics.prefetch_cpu_seconds * 1e3) +
      ", \"peak_rss_bytes\": " + std::to_string(peak) +
      ", \"limit_fraction\": " + number("%.4f", metrics.limit_fraction) +
      times_of_ranks(metrics.ranks);
  if (const auto joules = joules_of_step(metrics))
    line += ", \"joules\": " + number("%.6g", *joules);
  if (metrics.eval_loss)
    line += ", \"eval_loss\": " + exact(*metrics.eval_loss);
  return line + "}";
}

}  // namespace shardtune::trainer
