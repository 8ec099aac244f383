// LoKr: the change of a weight is a Kronecker product, scale * w1 (x) w2, with out = out_l out_k
// and in = in_m in_n factored as evenly as they go. w2 is full or low-rank (w2_a w2_b), w1 likewise
// with decompose_both. scale = alpha / r always, as PEFT has it (LyCORIS takes 1 for full factors).
// Source  Yeh et al. 2024, LyCORIS, arXiv:2309.14859
#include <algorithm>

#include "adapters/lycoris.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;
using models::BaseLinear;

struct LoKrOptions : LycorisOptions {
  bool decompose_both = false;
  int64_t decompose_factor = -1;

  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = LycorisOptions::keys();
    keys.insert(keys.end(), {{"decompose_both", decompose_both ? "true" : "false"},
                             {"decompose_factor", std::to_string(decompose_factor)},
                             {"rank_dropout_scale", rank_dropout_scale ? "true" : "false"}});
    return keys;
  }
};

/// m n = size with m <= n: m is `factor` where that divides, else the largest that is not above the
/// root (or above `factor`).
std::pair<int64_t, int64_t> factorize(int64_t size, int64_t factor) {
  if (factor > 0 && size % factor == 0)
    return {factor, size / factor};
  if (factor == -1)
    factor = size;
  int64_t m = 1, n = size;
  const int64_t length = m + n;
  while (m < n) {
    int64_t next = m + 1;
    while (size % next != 0)
      ++next;
    if (next + size / next > length || next > factor)
      break;
    m = next;
    n = size / next;
  }
  return {std::min(m, n), std::max(m, n)};
}

/// Which tensors a linear has; ids in order of declaration.
struct Factors {
  bool is_w1_split = false;
  bool is_w2_split = false;
};

class LoKr : public LycorisAdapter {
 public:
  static constexpr std::string_view kName = "lokr";

  LoKr(const LoKrOptions& given, models::Model& model)
      : LycorisAdapter(given, model), given_(given), factors_(model.linears().size()) {
    for (const BaseLinear* linear : match_target_modules(given.targets, model))
      attach(*linear);
  }

  std::string_view method() const override { return kName; }
  io::Json peft_config(const std::string& base_model) const override {
    auto own = lycoris_config();
    own.emplace_back("decompose_both", given_.decompose_both);
    own.emplace_back("decompose_factor", given_.decompose_factor);
    own.emplace_back("rank_dropout_scale", given_.rank_dropout_scale);
    return with_trained_parts(peft_config_json("LOKR", base_model, std::move(own)),
                              options().targets);
  }

 protected:
  Variable change(Tape& tape, const BaseLinear& linear) const override {
    const Factors& factors = factors_[static_cast<size_t>(linear.index())];
    size_t slot = 0;
    const auto factor = [&](bool is_split) {
      const Variable first = tape.parameter(id_of(linear, slot++));
      if (!is_split)
        return first;
      return autograd::matmul(tape, first, tape.parameter(id_of(linear, slot++)), Transpose::kNo);
    };
    const Variable w1 = factor(factors.is_w1_split);
    const Variable w2 = factor(factors.is_w2_split);
    return autograd::kronecker(tape, w1, w2);
  }

 private:
  void attach(const BaseLinear& linear) {
    const int64_t rank = given_.rank_of(linear.path());
    if (given_.is_new)
      check_rank("r", rank, linear);
    const auto [out_l, out_k] = factorize(linear.out_features(), given_.decompose_factor);
    const auto [in_m, in_n] = factorize(linear.in_features(), given_.decompose_factor);
    Factors& factors = factors_[static_cast<size_t>(linear.index())];
    factors.is_w1_split = given_.decompose_both && 2 * rank < std::max(out_l, in_m);
    factors.is_w2_split = 2 * rank < std::max(out_k, in_n);
    if (factors.is_w1_split) {
      declare(linear, ".lokr_w1_a", {out_l, rank}, constant_values(0.0f));
      declare(linear, ".lokr_w1_b", {rank, in_m}, kaiming_values(in_m));
    } else {
      declare(linear, ".lokr_w1", {out_l, in_m}, constant_values(0.0f));
    }
    if (factors.is_w2_split) {
      declare(linear, ".lokr_w2_a", {out_k, rank}, kaiming_values(rank));
      declare(linear, ".lokr_w2_b", {rank, in_n}, kaiming_values(in_n));
    } else {
      declare(linear, ".lokr_w2", {out_k, in_n}, kaiming_values(in_n));
    }
  }

  LoKrOptions given_;
  std::vector<Factors> factors_;  // by BaseLinear::index()
};

}  // namespace

std::unique_ptr<AdapterOptions> read_lokr(const OptionReader& reader) {
  LoKrOptions options;
  static_cast<LycorisOptions&>(options) = parse_lycoris(reader);
  options.decompose_both = reader.boolean("decompose_both", false);
  options.decompose_factor = reader.integer("decompose_factor", -1, {-1, 65536});
  options.rank_dropout_scale = reader.boolean("rank_dropout_scale", false);
  return std::make_unique<MethodOptions<LoKr, LoKrOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
