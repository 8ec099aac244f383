#include "optim/sgd.h"

#include "core/error.h"
#include "core/parallel_for.h"

namespace shardtune::optim {

namespace {
constexpr int64_t kGrain = 1 << 14;

struct Scalars {
  float decay, momentum, one_minus_dampening, negative_rate;
};

void check_segment(const OptimizerSegment& segment, int64_t step, size_t num_states) {
  if (step < 1)
    throw ArgumentError("sgd: expected a step from 1, found " + std::to_string(step));
  if (segment.states.size() != num_states)
    throw ArgumentError("sgd: expected " + std::to_string(num_states) + " states, found " +
                        std::to_string(segment.states.size()));
  const size_t count = segment.parameter.size();
  if (segment.gradient.size() != count || (num_states == 1 && segment.states[0].size() != count))
    throw ArgumentError("sgd: parameter, gradient and states differ in length");
}
}  // namespace

Sgd::Sgd(SgdOptions options) : options_(options) {
  const auto require_share = [](const char* name, double value) {
    if (!(value >= 0.0 && value < 1.0))
      throw ArgumentError("sgd: expected " + std::string(name) + " in [0, 1), found " +
                          std::to_string(value));
  };
  require_share("momentum", options.momentum);
  require_share("dampening", options.dampening);
  if (options.nesterov && (options.momentum == 0.0 || options.dampening != 0.0))
    throw ArgumentError("sgd: nesterov: expected momentum > 0 and dampening 0, found " +
                        std::to_string(options.momentum) + " and " +
                        std::to_string(options.dampening));
}

std::vector<std::string> Sgd::state_names() const {
  if (options_.momentum == 0.0)
    return {};
  return {"momentum_buffer"};
}

void Sgd::step(std::span<const OptimizerSegment> segments, int64_t step) const {
  const bool has_buffer = options_.momentum != 0.0;
  for (const OptimizerSegment& segment : segments) {
    check_segment(segment, step, has_buffer ? 1 : 0);
    const Scalars s{static_cast<float>(segment.weight_decay), static_cast<float>(options_.momentum),
                    static_cast<float>(1.0 - options_.dampening),
                    static_cast<float>(-segment.learning_rate)};
    float* const parameter = segment.parameter.data();
    const float* const gradient = segment.gradient.data();
    float* const buffer = has_buffer ? segment.states[0].data() : nullptr;
    const auto update = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float direction = gradient[i] + s.decay * parameter[i];
        if (has_buffer) {
          buffer[i] =
              step == 1 ? direction : buffer[i] * s.momentum + s.one_minus_dampening * direction;
          direction = options_.nesterov ? direction + s.momentum * buffer[i] : buffer[i];
        }
        parameter[i] += s.negative_rate * direction;
      }
    };
    parallel_for(static_cast<int64_t>(segment.parameter.size()), kGrain, update);
  }
}

std::unique_ptr<Optimizer> make_sgd(const io::YamlNode& section) {
  const io::NumberRange share{.min = 0.0, .max = 1.0, .max_exclusive = true};
  SgdOptions options;
  options.momentum = section.number_or("momentum", 0.0, share);
  options.dampening = section.number_or("dampening", 0.0, share);
  options.nesterov = section.boolean_or("nesterov", false);
  const bool asks_nesterov = options.nesterov;
  if (asks_nesterov && options.momentum == 0.0) {
    section.error("nesterov",
                  "expected false without a momentum above 0, found true. Write for example "
                  "'momentum: 0.9' beside it.");
    options.nesterov = false;
  }
  if (asks_nesterov && options.dampening != 0.0) {
    section.error("dampening", "expected 0 beside 'nesterov: true', found " +
                                   section.string_or("dampening", "") + ". Remove one of them.");
    options.nesterov = false;
  }
  return std::make_unique<Sgd>(options);
}

}  // namespace shardtune::optim
