#include "adapters/lycoris.h"

#include <cmath>

#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "core/dry_run.h"

namespace shardtune::adapters {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

int64_t LycorisOptions::rank_of(const std::string& path) const {
  return static_cast<int64_t>(pattern_value(rank_pattern, path, static_cast<double>(r)));
}

float LycorisOptions::scale_of(const std::string& path) const {
  return static_cast<float>(pattern_value(alpha_pattern, path, alpha) /
                            static_cast<double>(rank_of(path)));
}

std::vector<std::pair<std::string, std::string>> LycorisOptions::keys() const {
  auto keys = target_keys(targets);
  keys.insert(keys.end(), {{"alpha", number_json(alpha).dump()},
                           {"alpha_pattern", pattern_json(alpha_pattern).dump()},
                           {"module_dropout", number_json(module_dropout).dump()},
                           {"r", std::to_string(r)},
                           {"rank_dropout", number_json(rank_dropout).dump()},
                           {"rank_pattern", pattern_json(rank_pattern).dump()}});
  return keys;
}

LycorisOptions parse_lycoris(const OptionReader& reader) {
  LycorisOptions options;
  options.is_new = reader.source() == OptionReader::Source::kRun;
  options.r = reader.integer("r", 8, {1, 65536});
  options.alpha = reader.number("alpha", 8.0, {0, 1e6, true});
  options.rank_pattern = reader.pattern("rank_pattern", {1, 65536});
  options.alpha_pattern = reader.pattern("alpha_pattern", {0, 1e6, true});
  for (const auto& [name, rank] : options.rank_pattern) {
    if (rank != std::floor(rank))
      reader.error("rank_pattern", "expected whole ranks.");
  }
  options.rank_dropout = reader.number("rank_dropout", 0.0, {0, 1, false, true});
  options.module_dropout = reader.number("module_dropout", 0.0, {0, 1, false, true});
  options.targets = read_target_modules(reader, {"q_proj", "v_proj"});
  return options;
}

Variable LycorisAdapter::on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                                   const models::PassContext& context, const Next& next) {
  const Variable base = next(x);
  if (drops_module(linear, context, options_.module_dropout))
    return base;
  const Variable delta =
      autograd::scaled(tape, change(tape, linear), options_.scale_of(linear.path()));
  const Variable y = autograd::matmul(tape, x, delta, kernels::Transpose::kYes, DType::kFloat32);
  return autograd::add(tape, base, drop_outputs(tape, linear, y, context));
}

// Rows of D are columns of x D^T.
Variable LycorisAdapter::drop_outputs(Tape& tape, const BaseLinear& linear, const Variable& y,
                                      const models::PassContext& context) const {
  if (context.mode != models::Mode::kTraining || options_.rank_dropout <= 0.0)
    return y;
  Tensor mask(Shape{y.dim(1)}, DType::kFloat32);
  if (DryRun::current() == nullptr) {
    const CounterRng rng = rng_of(linear, context);
    const auto values = mask.span<float>();
    int64_t kept = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = rng.uniform(i + 1) > static_cast<float>(options_.rank_dropout) ? 1.0f : 0.0f;
      kept += values[i] != 0.0f ? 1 : 0;
    }
    const float factor = options_.rank_dropout_scale && kept > 0
                             ? static_cast<float>(values.size()) / static_cast<float>(kept)
                             : 1.0f;
    for (float& value : values)
      value *= factor;
  }
  return autograd::mul(tape, y, Variable::constant(std::move(mask)));
}

void LycorisAdapter::merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                                const TensorView& rows) const {
  if (!wraps(linear))
    return;
  Tape tape(store(), autograd::Recording::kOff);
  const Variable delta = change(tape, linear);
  const auto values = rows.span<float>();
  const auto part = delta.value().rows(begin, end).span<const float>();
  const float scale = options_.scale_of(linear.path());
  for (size_t i = 0; i < values.size(); ++i)
    values[i] += scale * part[i];
}

std::vector<std::pair<std::string, io::Json>> LycorisAdapter::lycoris_config() const {
  std::vector<std::pair<std::string, io::Json>> own = {
      {"alpha", number_json(options_.alpha)},
      {"alpha_pattern", pattern_json(options_.alpha_pattern)},
      {"init_weights", true},
      {"module_dropout", options_.module_dropout},
      {"r", options_.r},
      {"rank_dropout", options_.rank_dropout},
      {"rank_pattern", pattern_json(options_.rank_pattern)},
      {"use_effective_conv2d", false}};
  add_common_peft_keys(own, wrapped_targets());
  return own;
}

}  // namespace shardtune::adapters
