#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "optim/adamw_update.h"

namespace shardtune::optim {

namespace {
constexpr int64_t kGrain = 1 << 14;
constexpr int64_t kLine =
    16;  // values of a cache line: where threads part, so that no vector is cut

AdamWScalars scalars_of(const AdamWOptions& options, const OptimizerSegment& segment,
                        int64_t step) {
  const float weight = static_cast<float>(1.0 - options.beta1);
  const bool lerp_from_gradient = weight >= 0.5f;
  const double bias_correction1 = 1.0 - std::pow(options.beta1, static_cast<double>(step));
  const double bias_correction2 = 1.0 - std::pow(options.beta2, static_cast<double>(step));
  return {
      .decay_factor = static_cast<float>(1.0 - segment.learning_rate * segment.weight_decay),
      .lerp_from_gradient = lerp_from_gradient,
      .lerp_weight = lerp_from_gradient ? -(1.0f - weight) : weight,
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
      .bias_correction2_sqrt = static_cast<float>(std::sqrt(bias_correction2)),
      .eps = static_cast<float>(options.eps),
      .negative_step_size = static_cast<float>(-(segment.learning_rate / bias_correction1)),
  };
}

void check_segment(const OptimizerSegment& segment, int64_t step) {
  if (step < 1)
    throw ArgumentError("adamw: expected a step from 1, found " + std::to_string(step));
  if (segment.states.size() != 2)
    throw ArgumentError("adamw: expected 2 states (exp_avg, exp_avg_sq), found " +
                        std::to_string(segment.states.size()));
  const size_t count = segment.parameter.size();
  if (segment.gradient.size() != count || segment.states[0].size() != count ||
      segment.states[1].size() != count)
    throw ArgumentError("adamw: parameter, gradient and states differ in length (" +
                        std::to_string(count) + ", " + std::to_string(segment.gradient.size()) +
                        ", " + std::to_string(segment.states[0].size()) + ", " +
                        std::to_string(segment.states[1].size()) + ")");
}

AdamWSpans spans_of(const OptimizerSegment& segment, int64_t begin, int64_t end) {
  return {segment.parameter.data() + begin, segment.gradient.data() + begin,
          segment.states[0].data() + begin, segment.states[1].data() + begin,
          static_cast<size_t>(end - begin)};
}
}  // namespace

AdamW::AdamW(AdamWOptions options) : options_(options) {
  const auto is_beta = [](double beta) { return beta >= 0.0 && beta < 1.0; };
  if (!is_beta(options.beta1) || !is_beta(options.beta2))
    throw ArgumentError("adamw: expected betas in [0, 1), found " + std::to_string(options.beta1) +
                        " and " + std::to_string(options.beta2));
  if (!(options.eps > 0.0))
    throw ArgumentError("adamw: expected eps > 0, found " + std::to_string(options.eps));
}

std::vector<std::string> AdamW::state_names() const { return {"exp_avg", "exp_avg_sq"}; }

void AdamW::step(std::span<const OptimizerSegment> segments, int64_t step) const {
  for (const OptimizerSegment& segment : segments) {
    check_segment(segment, step);
    const AdamWScalars scalars = scalars_of(options_, segment, step);
    const auto count = static_cast<int64_t>(segment.parameter.size());
    parallel_for(ceil_div(count, kLine), kGrain / kLine, [&](int64_t begin, int64_t end) {
      adamw_update(scalars, spans_of(segment, begin * kLine, std::min(count, end * kLine)));
    });
  }
}

void adamw_step_plain(const AdamWOptions& options, const OptimizerSegment& segment, int64_t step) {
  check_segment(segment, step);
  adamw_update_plain(scalars_of(options, segment, step),
                     spans_of(segment, 0, static_cast<int64_t>(segment.parameter.size())));
}

std::unique_ptr<Optimizer> make_adamw(const io::YamlNode& section) {
  AdamWOptions options;
  const auto betas = section.numbers_or("betas", {options.beta1, options.beta2},
                                        {.min = 0.0, .max = 1.0, .max_exclusive = true});
  const size_t num_written = section.has("betas") ? section.elements("betas").size() : 2;
  if (num_written != 2) {
    section.error("betas", "expected 2 numbers, found " + std::to_string(num_written) +
                               ". Write for example 'betas: [0.9, 0.999]'.");
  } else if (betas.size() == 2) {  // fewer when one of them was told as an error
    options.beta1 = betas[0];
    options.beta2 = betas[1];
  }
  options.eps =
      section.number_or("eps", options.eps, {.min = 0.0, .max = 1.0, .min_exclusive = true});
  return std::make_unique<AdamW>(options);
}

}  // namespace shardtune::optim
