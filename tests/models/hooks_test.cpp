// Hook points (1), (3) and (5) through small methods written for this test: a linear wrap, prefix
// keys and values with gradients, and a change of each branch's output.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "autograd/ops.h"
#include "models/head.h"
#include "objectives/sft.h"
#include "tests/autograd/finite_difference.h"
#include "tests/support/small_model.h"

namespace shardtune::models {
namespace {

using testing::make_batch;
using testing::random_tensor;
using testing::SmallModel;

/// (1): every v_proj is scaled by a trained vector, (3): two trained prefix rows per layer, (5):
/// every MLP output gets a trained gate. One vector of each kind per layer.
class ThreeHooks : public Hooks {
 public:
  explicit ThreeHooks(Model& model) : model_(model) {
    const ModelConfig& config = model.config();
    const int64_t kv = config.kv_features();
    for (int layer = 0; layer < config.num_layers; ++layer) {
      const auto add = [&](const char* name, Shape shape, float mean) {
        const ParameterId id =
            model.store().declare({std::to_string(layer) + name, model.layer_unit(layer),
                                   ParameterKind::kTrainable, DType::kFloat32, shape});
        Tensor values = random_tensor(shape, 40 + static_cast<uint64_t>(id), 0.3f);
        for (float& value : values.span<float>())
          value += mean;
        model.store().publish(id, values.view().bytes());
        return id;
      };
      scales_.push_back(add(".scale", {kv}, 1.0f));
      prefix_k_.push_back(add(".prefix_k", {2, kv}, 0.0f));
      prefix_v_.push_back(add(".prefix_v", {2, kv}, 0.0f));
      gates_.push_back(add(".gate", {config.hidden_size}, 1.0f));
    }
  }

  bool wraps(const BaseLinear& linear) const override { return linear.leaf_name() == "v_proj"; }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const PassContext& context, const Next& next) override {
    return autograd::mul(tape, next(x), tape.parameter(scales_[context.layer]));
  }
  PrefixKv prefix_kv(Tape& tape, const PassContext& context) override {
    return {tape.parameter(prefix_k_[context.layer]), tape.parameter(prefix_v_[context.layer])};
  }
  int64_t num_positions() const override { return 2; }
  bool changes_branches() const override { return true; }
  Variable after_branch(Tape& tape, const BranchParts& parts, const PassContext& context) override {
    if (parts.branch != Branch::kMlp)
      return parts.output;
    return autograd::mul(tape, parts.output, tape.parameter(gates_[context.layer]));
  }

 private:
  Model& model_;
  std::vector<ParameterId> scales_, prefix_k_, prefix_v_, gates_;
};

class HooksTest : public ::testing::Test {
 protected:
  HooksTest() { small_.store.seal(); }

  double train(bool recompute) {
    small_.store.begin_step(1);
    small_.store.begin_micro_batch(0);
    ForwardOptions options = small_.forward_options(batch_);
    options.hooks = {&hooks_};
    options.gradient_checkpointing = recompute;
    const auto result = objectives::make_next_token()->train(*small_.model, options, 0.1f);
    small_.store.end_round();
    small_.store.finish_gradients();
    return 0.1 * result.loss_sum;
  }

  double loss() {
    ForwardOptions options = small_.forward_options(batch_);
    options.hooks = {&hooks_};
    return 0.1 * objectives::make_next_token()->evaluate(*small_.model, options).loss_sum;
  }

  SmallModel small_{"tied_gqa"};
  ThreeHooks hooks_{*small_.model};
  TokenBatch batch_ = make_batch({{1, 5, 9, 60, 33}, {2, 90, 17, 4, 8, 41}});
};

TEST_F(HooksTest, GradientsEqualFiniteDifferences) {
  const double size = train(false);
  std::vector<std::vector<float>> gradients;
  for (const auto& segment : small_.store.segments())
    gradients.emplace_back(segment.gradient.begin(), segment.gradient.end());
  size_t index = 0;
  for (auto& segment : small_.store.segments()) {
    testing::expect_gradient(
        segment.parameter, gradients[index++], [&] { return loss(); }, size);
    if (HasFailure())
      FAIL() << small_.store.spec(segment.id).name;
  }
}

TEST_F(HooksTest, RecomputeGivesTheSameBits) {
  std::vector<float> all[2];
  for (const bool recompute : {false, true}) {
    train(recompute);
    for (const auto& segment : small_.store.segments()) {
      all[recompute ? 1 : 0].insert(all[recompute ? 1 : 0].end(), segment.gradient.begin(),
                                    segment.gradient.end());
    }
  }
  ASSERT_FALSE(all[0].empty());
  EXPECT_EQ(std::memcmp(all[0].data(), all[1].data(), all[0].size() * sizeof(float)), 0);
}

TEST_F(HooksTest, EverySampleSeesThePrefix) {
  const double together = loss();
  double apart = 0.0;
  for (const std::vector<int32_t>& sample :
       {std::vector<int32_t>{1, 5, 9, 60, 33}, std::vector<int32_t>{2, 90, 17, 4, 8, 41}}) {
    batch_ = make_batch({sample});
    apart += loss();
  }
  EXPECT_NEAR(together, apart, 1e-5 * together);
}

}  // namespace
}  // namespace shardtune::models
