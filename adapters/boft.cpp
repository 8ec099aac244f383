// BOFT: as OFT with exact rotations of small blocks and a scale per output, y = s * (W (x R)) +
// bias. Butterfly factors above 1 need PEFT's CUDA kernel there and are refused here: without it
// PEFT stores one factor whatever its configuration says. Source  Liu et al. 2024, BOFT,
// arXiv:2311.06243
#include "adapters/linear_adapter.h"
#include "adapters/methods.h"
#include "adapters/rotation.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

struct BoftOptions {
  int64_t boft_block_size = 4;
  int64_t boft_block_num = 0;  // 0: by boft_block_size
  double boft_dropout = 0.0;   // of blocks, that are not rotated then
  TargetModules targets;

  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = target_keys(targets);
    keys.insert(keys.end(), {{"boft_block_num", std::to_string(boft_block_num)},
                             {"boft_block_size", std::to_string(boft_block_size)},
                             {"boft_dropout", number_json(boft_dropout).dump()}});
    return keys;
  }
};

enum Slot : size_t { kR, kS };

class Boft : public LinearAdapter {
 public:
  static constexpr std::string_view kName = "boft";

  Boft(const BoftOptions& options, models::Model& model) : LinearAdapter(model), options_(options) {
    for (const BaseLinear* linear : match_target_modules(options.targets, model)) {
      const int64_t in = linear->in_features();
      const bool by_number = options.boft_block_num > 0;
      const int64_t wanted = by_number ? options.boft_block_num : options.boft_block_size;
      if (wanted > in || in % wanted != 0) {
        throw ConfigError(std::string("adapter.") +
                          (by_number ? "boft_block_num" : "boft_block_size") +
                          ": expected a divisor of " + std::to_string(in) + " (inputs of " +
                          linear->path() + "), found " + std::to_string(wanted) + ".");
      }
      const int64_t size = block_size(*linear);
      declare(*linear, ".boft_R", {1, in / size, size, size}, constant_values(0.0f));
      declare(*linear, ".boft_s", {linear->out_features(), 1}, constant_values(1.0f));
    }
  }

  std::string_view method() const override { return kName; }

  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override {
    Variable r = rotations(tape, linear);
    if (context.mode == models::Mode::kTraining && options_.boft_dropout > 0.0)
      r = hold_blocks(tape, r,
                      draw_blocks(rng_of(linear, context), r.dim(0), options_.boft_dropout));
    const Variable y = next(rotate_blocks(tape, x, r));
    const Variable s = tape.parameter(id_of(linear, kS));
    const Variable row = autograd::reshape(tape, s, Shape{s.numel()});
    if (linear.bias() == kNoParameter)
      return autograd::mul(tape, y, row);
    const Variable bias = tape.frozen(linear.bias());
    const Variable plain = autograd::add_row(tape, y, autograd::scaled(tape, bias, -1.0f));
    return autograd::add_row(tape, autograd::mul(tape, plain, row), bias);
  }

  void merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override {
    if (!wraps(linear))
      return;
    Tape tape(store(), autograd::Recording::kOff);
    rotate_weight_rows(rotations(tape, linear).value(), rows);
    const auto s = store().value(id_of(linear, kS)).span<const float>();
    for (int64_t i = begin; i < end; ++i) {
      for (float& value : rows.rows(i - begin, i - begin + 1).span<float>())
        value *= s[static_cast<size_t>(i)];
    }
  }

  io::Json peft_config(const std::string& base_model) const override {
    std::vector<std::pair<std::string, io::Json>> own = {
        {"bias", "none"},
        {"boft_block_num", options_.boft_block_num},
        {"boft_block_size", options_.boft_block_num > 0 ? 0 : options_.boft_block_size},
        {"boft_dropout", options_.boft_dropout},
        {"boft_n_butterfly_factor", 1},
        {"fan_in_fan_out", wraps_conv1d()},
        {"init_weights", true}};
    add_common_peft_keys(own, wrapped_targets());
    return with_trained_parts(peft_config_json("BOFT", base_model, std::move(own)),
                              options_.targets);
  }

 private:
  int64_t block_size(const BaseLinear& linear) const {
    return options_.boft_block_num > 0 ? linear.in_features() / options_.boft_block_num
                                       : options_.boft_block_size;
  }
  Variable rotations(Tape& tape, const BaseLinear& linear) const {
    const int64_t size = block_size(linear);
    return cayley(tape, tape.parameter(id_of(linear, kR)), linear.in_features() / size, size,
                  {0, Cayley::Parameters::kWholeMatrix});
  }

  BoftOptions options_;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_boft(const OptionReader& reader) {
  BoftOptions options;
  options.boft_block_num = reader.integer("boft_block_num", 0, {0, 65536});
  options.boft_block_size =
      reader.integer("boft_block_size", options.boft_block_num > 0 ? 0 : 4, {0, 4096});
  if ((options.boft_block_num > 0) == (options.boft_block_size > 0))
    reader.error("boft_block_size", "expected one of boft_block_size and boft_block_num above 0.");
  reader.integer("boft_n_butterfly_factor", 1, {1, 1});
  options.boft_dropout = reader.number("boft_dropout", 0.0, {0, 1, false, true});
  options.targets = read_target_modules(reader, {"q_proj", "v_proj"}, "boft_only");
  return std::make_unique<MethodOptions<Boft, BoftOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
