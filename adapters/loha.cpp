// LoHa: the change of a weight is the elementwise product of two low-rank matrices,
// scale * (w1_a w1_b) .* (w2_a w2_b), scale = alpha / r. w2_b starts at 0.
// Source  Hyeon-Woo et al. 2022, FedPara, arXiv:2108.06098; Yeh et al. 2024, LyCORIS,
// arXiv:2309.14859
#include "adapters/lycoris.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;
using models::BaseLinear;

enum Slot : size_t { kW1A, kW1B, kW2A, kW2B };

class LoHa : public LycorisAdapter {
 public:
  static constexpr std::string_view kName = "loha";

  LoHa(const LycorisOptions& given, models::Model& model) : LycorisAdapter(given, model) {
    for (const BaseLinear* linear : match_target_modules(given.targets, model)) {
      const int64_t rank = given.rank_of(linear->path());
      if (given.is_new)
        check_rank("r", rank, *linear);
      const Shape a{linear->out_features(), rank};
      const Shape b{rank, linear->in_features()};
      declare(*linear, ".hada_w1_a", a, kaiming_values(rank));
      declare(*linear, ".hada_w1_b", b, kaiming_values(linear->in_features()));
      declare(*linear, ".hada_w2_a", a, kaiming_values(rank));
      declare(*linear, ".hada_w2_b", b, constant_values(0.0f));
    }
  }

  std::string_view method() const override { return kName; }
  io::Json peft_config(const std::string& base_model) const override {
    return with_trained_parts(peft_config_json("LOHA", base_model, lycoris_config()),
                              options().targets);
  }

 protected:
  Variable change(Tape& tape, const BaseLinear& linear) const override {
    const auto product = [&](Slot a, Slot b) {
      return autograd::matmul(tape, tape.parameter(id_of(linear, a)),
                              tape.parameter(id_of(linear, b)), Transpose::kNo);
    };
    return autograd::mul(tape, product(kW1A, kW1B), product(kW2A, kW2B));
  }
};

}  // namespace

std::unique_ptr<AdapterOptions> read_loha(const OptionReader& reader) {
  LycorisOptions options = parse_lycoris(reader);
  options.rank_dropout_scale = true;  // always, in PEFT
  return std::make_unique<MethodOptions<LoHa, LycorisOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
