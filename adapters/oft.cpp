// OFT: the input of a linear is rotated in blocks, y = W (x blockdiag(R)); each rotation comes from
// a skew-symmetric matrix by a Neumann series of Cayley's transform (use_cayley_neumann, the
// default) or exactly. Starts at no rotation. block_share: one rotation for all blocks; coft keeps
// rotations small (coft.h); module_dropout: floor(p n) of n blocks are not rotated, others in each
// micro-batch of a training. Source  Qiu et al. 2023, OFT, arXiv:2306.07280; Qiu et al. 2025,
// OFTv2, arXiv:2506.19847
#include <algorithm>

#include "adapters/coft.h"
#include "adapters/linear_adapter.h"
#include "adapters/methods.h"
#include "adapters/rotation.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

struct OftOptions {
  int64_t r = 0;  // number of blocks; 0: by oft_block_size
  int64_t oft_block_size = 32;
  bool block_share = false;
  double module_dropout = 0.0;  // of blocks, that are not rotated then
  bool coft = false;
  double eps = 6e-5;  // of coft
  bool use_cayley_neumann = true;
  int64_t num_cayley_neumann_terms = 5;
  TargetModules targets;

  std::vector<std::pair<std::string, std::string>> keys() const {
    const auto truth = [](bool value) { return std::string(value ? "true" : "false"); };
    auto keys = target_keys(targets);
    keys.insert(keys.end(), {{"block_share", truth(block_share)},
                             {"coft", truth(coft)},
                             {"eps", number_json(eps).dump()},
                             {"module_dropout", number_json(module_dropout).dump()},
                             {"num_cayley_neumann_terms", std::to_string(num_cayley_neumann_terms)},
                             {"oft_block_size", std::to_string(oft_block_size)},
                             {"r", std::to_string(r)},
                             {"use_cayley_neumann", truth(use_cayley_neumann)}});
    return keys;
  }
};

/// The divisor of `size` that is nearest to `wanted`, the lower of two as near.
int64_t nearest_divisor(int64_t size, int64_t wanted) {
  if (wanted >= size)
    return size;
  int64_t above = wanted, below = wanted;
  while (size % above != 0)
    ++above;
  while (size % below != 0)
    --below;
  return wanted - below <= above - wanted ? below : above;
}

class Oft : public LinearAdapter {
 public:
  static constexpr std::string_view kName = "oft";

  Oft(const OftOptions& options, models::Model& model)
      : LinearAdapter(model), options_(options), limit_(options.eps) {
    for (const BaseLinear* linear : match_target_modules(options.targets, model)) {
      const int64_t size = block_size(*linear);
      declare(*linear, ".oft_R.weight", {num_rotations(*linear), size * (size - 1) / 2},
              constant_values(0.0f));
      if (options.coft && size > 1)
        limit_.add(id_of(*linear, 0), num_rotations(*linear), size * (size - 1) / 2);
    }
  }

  std::string_view method() const override { return kName; }

  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override {
    Variable r = rotations(tape, linear);
    if (context.mode == models::Mode::kTraining && options_.module_dropout > 0.0 && r.dim(0) > 1)
      r = hold_blocks(tape, r,
                      draw_blocks(rng_of(linear, context), r.dim(0), options_.module_dropout));
    return next(rotate_blocks(tape, x, r));
  }

  void after_optimizer_step(int64_t, std::span<const models::UpdatedRange> ranges,
                            const models::GatherChunks& gather) override {
    if (options_.coft)
      limit_.project(ranges, gather);
  }
  void finish_loading() override;

  void merge_rows(const BaseLinear& linear, int64_t, int64_t,
                  const TensorView& rows) const override {
    if (!wraps(linear))
      return;
    Tape tape(store(), autograd::Recording::kOff);
    rotate_weight_rows(rotations(tape, linear).value(), rows);
  }

  io::Json peft_config(const std::string& base_model) const override {
    std::vector<std::pair<std::string, io::Json>> own = {
        {"bias", "none"},
        {"block_share", options_.block_share},
        {"coft", options_.coft},
        {"eps", options_.eps},
        {"fan_in_fan_out", wraps_conv1d()},
        {"init_weights", true},
        {"module_dropout", options_.module_dropout},
        {"num_cayley_neumann_terms", options_.num_cayley_neumann_terms},
        {"oft_block_size", options_.r > 0 ? 0 : options_.oft_block_size},
        {"r", options_.r},
        {"use_cayley_neumann", options_.use_cayley_neumann}};
    add_common_peft_keys(own, wrapped_targets());
    return with_trained_parts(peft_config_json("OFT", base_model, std::move(own)),
                              options_.targets);
  }

 private:
  int64_t block_size(const BaseLinear& linear) const {
    const int64_t in = linear.in_features();
    return options_.r > 0 ? in / nearest_divisor(in, options_.r)
                          : nearest_divisor(in, options_.oft_block_size);
  }
  int64_t num_rotations(const BaseLinear& linear) const {
    return options_.block_share ? 1 : linear.in_features() / block_size(linear);
  }
  Variable rotations(Tape& tape, const BaseLinear& linear) const {
    Cayley options;
    options.neumann_terms = options_.use_cayley_neumann ? options_.num_cayley_neumann_terms : 0;
    return cayley(tape, tape.parameter(id_of(linear, 0)), num_rotations(linear), block_size(linear),
                  options);
  }

  OftOptions options_;
  RotationLimit limit_;
};

// PEFT saves what its last step left, and moves it when it is used.
void Oft::finish_loading() {
  if (!options_.coft)
    return;
  for (const BaseLinear* linear : model().linears()) {
    if (!wraps(*linear))
      continue;
    const ParameterId id = id_of(*linear, 0);
    std::vector<float> values;
    {
      const UnitLease lease = store().acquire(linear->unit(), Pass::kForward);
      const auto saved = store().value(id).span<const float>();
      values.assign(saved.begin(), saved.end());
    }
    if (project_rotations(values, num_rotations(*linear), options_.eps))
      publish(id, [&](std::span<float> out) { std::ranges::copy(values, out.begin()); });
  }
}

}  // namespace

std::unique_ptr<AdapterOptions> read_oft(const OptionReader& reader) {
  OftOptions options;
  options.r = reader.integer("r", 0, {0, 65536});
  options.oft_block_size = reader.integer("oft_block_size", options.r > 0 ? 0 : 32, {0, 4096});
  if ((options.r > 0) == (options.oft_block_size > 0))
    reader.error("oft_block_size",
                 "expected one of r and oft_block_size above 0. Leave the other "
                 "out, or write 0.");
  if (options.oft_block_size == 1)
    reader.error("oft_block_size", "expected at least 2: a block of 1 cannot be rotated.");
  options.block_share = reader.boolean("block_share", false);
  options.use_cayley_neumann = reader.boolean("use_cayley_neumann", true);
  options.num_cayley_neumann_terms = reader.integer("num_cayley_neumann_terms", 5, {1, 64});
  options.module_dropout = reader.number("module_dropout", 0.0, {0, 1, false, true});
  options.coft = reader.boolean("coft", false);
  options.eps = reader.number("eps", 6e-5, {0, 1e6});
  if (options.coft && options.eps == 0.0)
    reader.error("eps", "expected a number above 0 with coft: true: at 0 nothing could rotate.");
  options.targets = read_target_modules(reader, {"q_proj", "v_proj"}, "oft_only");
  return std::make_unique<MethodOptions<Oft, OftOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
