// VeRA: y = W x + b * (B (d * (A x))), with one random pair A, B that all linears share, frozen,
// and learned vectors b (from 0) and d (from d_initial). Linears take the first columns of A and
// the first rows of B. The pair is drawn from projection_prng_key by our generator, not by PEFT's,
// and so is always saved (save_projection). Source  Kopiczko et al. 2024, VeRA, arXiv:2310.11454
#include <algorithm>
#include <cmath>
#include <map>

#include "adapters/linear_adapter.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "core/dry_run.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;
using models::BaseLinear;

struct VeraOptions {
  int64_t r = 256;
  int64_t projection_prng_key = 0;
  double vera_dropout = 0.0;
  double d_initial = 0.1;
  TargetModules targets;

  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = target_keys(targets);
    keys.insert(keys.end(), {{"d_initial", number_json(d_initial).dump()},
                             {"projection_prng_key", std::to_string(projection_prng_key)},
                             {"r", std::to_string(r)},
                             {"vera_dropout", number_json(vera_dropout).dump()}});
    return keys;
  }
};

enum Slot : size_t { kLambdaB, kLambdaD };

class Vera : public LinearAdapter {
 public:
  static constexpr std::string_view kName = "vera";

  Vera(const VeraOptions& options, models::Model& model) : LinearAdapter(model), options_(options) {
    int64_t in = 0, out = 0;
    for (const BaseLinear* linear : match_target_modules(options.targets, model)) {
      in = std::max(in, linear->in_features());
      out = std::max(out, linear->out_features());
      declare(*linear, ".vera_lambda_b", {linear->out_features()}, constant_values(0.0f));
      declare(*linear, ".vera_lambda_d", {options.r},
              constant_values(static_cast<float>(options.d_initial)));
    }
    a_ = std::make_shared<Tensor>(Shape{options.r, in}, DType::kFloat32);
    b_ = std::make_shared<Tensor>(Shape{out, options.r}, DType::kFloat32);
    add_constant("base_model.", "vera_A", a_);
    add_constant("base_model.", "vera_B", b_);
    draw_projections();
  }

  std::string_view method() const override { return kName; }
  void finish_loading() override { first_columns_.clear(); }

  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override {
    const Variable seen = drop(tape, linear, x, context, options_.vera_dropout);
    Variable u =
        autograd::matmul(tape, seen, Variable::constant_view(a_of(linear)), Transpose::kYes);
    u = autograd::mul(tape, u, tape.parameter(id_of(linear, kLambdaD)));
    const Variable z = autograd::matmul(tape, u, Variable::constant_view(b_of(linear)),
                                        Transpose::kYes, DType::kFloat32);
    const Variable scaled = autograd::mul(tape, z, tape.parameter(id_of(linear, kLambdaB)));
    return autograd::add(tape, next(x), scaled);
  }

  void merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override {
    if (!wraps(linear))
      return;
    const auto d = store().value(id_of(linear, kLambdaD)).span<const float>();
    const auto b = store().value(id_of(linear, kLambdaB)).span<const float>();
    Tensor left(Shape{end - begin, options_.r}, DType::kFloat32);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t k = 0; k < options_.r; ++k)
        left.data<float>()[(i - begin) * options_.r + k] = b[static_cast<size_t>(i)] *
                                                           b_->data<float>()[i * options_.r + k] *
                                                           d[static_cast<size_t>(k)];
    }
    add_product(left, a_of(linear), 1.0f, rows);
  }

  io::Json peft_config(const std::string& base_model) const override {
    std::vector<std::pair<std::string, io::Json>> own = {
        {"bias", "none"},
        {"d_initial", options_.d_initial},
        {"fan_in_fan_out", wraps_conv1d()},
        {"init_weights", true},
        {"projection_prng_key", options_.projection_prng_key},
        {"r", options_.r},
        {"save_projection", true},
        {"vera_dropout", options_.vera_dropout}};
    add_common_peft_keys(own, wrapped_targets());
    return with_trained_parts(peft_config_json("VERA", base_model, std::move(own)),
                              options_.targets);
  }

 private:
  // U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), as PEFT's kaiming.
  void draw_projections() {
    if (DryRun::current() != nullptr)
      return;
    const auto seed = static_cast<uint64_t>(options_.projection_prng_key);
    for (const auto& [name, tensor] : {std::pair{"vera_A", a_}, std::pair{"vera_B", b_}}) {
      const float bound = std::sqrt(6.0f / static_cast<float>(tensor->dim(1)));
      uniform_values(bound)(CounterRng(mix_key(seed, std::string_view(name))),
                            tensor->span<float>());
    }
  }

  /// A[:, :in], contiguous.
  TensorView a_of(const BaseLinear& linear) const {
    const int64_t in = linear.in_features();
    Tensor& columns = first_columns_[in];
    if (columns.empty()) {
      columns = Tensor(Shape{options_.r, in}, DType::kFloat32);
      for (int64_t k = 0; k < options_.r && DryRun::current() == nullptr; ++k)
        std::copy_n(a_->data<float>() + k * a_->dim(1), in, columns.data<float>() + k * in);
    }
    return columns.view();
  }
  TensorView b_of(const BaseLinear& linear) const {
    return b_->view().rows(0, linear.out_features());
  }

  VeraOptions options_;
  std::shared_ptr<Tensor> a_, b_;
  mutable std::map<int64_t, Tensor> first_columns_;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_vera(const OptionReader& reader) {
  VeraOptions options;
  options.r = reader.integer("r", 256, {1, 65536});
  options.projection_prng_key = reader.integer("projection_prng_key", 0, {0, 1e15});
  options.vera_dropout = reader.number("vera_dropout", 0.0, {0, 1, false, true});
  options.d_initial = reader.number("d_initial", 0.1, {-1e6, 1e6});
  if (!reader.boolean("save_projection", true))
    reader.error(
        "save_projection",
        "expected true: without the projections the adapter cannot be read anywhere else.");
  options.targets = read_target_modules(reader, {"q_proj", "v_proj"}, "vera_only");
  return std::make_unique<MethodOptions<Vera, VeraOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
