// LoRA against PEFT: logits, loss and the gradient of every trained tensor, whole; initial values,
// merging, dropout and what is refused.
#include "adapters/lora.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/yaml_node.h"
#include "models/head.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using testing::golden_llama;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

io::Json peft_json(const std::string& text) { return io::parse_json(text, "adapter_config.json"); }

std::unique_ptr<Adapter> attach(SmallModel& small, const std::string& text) {
  return lora_from_peft(peft_json(text), "adapter_config.json")->attach(*small.model);
}

std::string attach_error(const std::string& text) {
  SmallModel small("tied_gqa");
  try {
    attach(small, text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class LoraGolden : public ::testing::TestWithParam<const char*> {
 protected:
  LoraGolden()
      : expected_(io::open_safetensors(golden_llama(GetParam()) + "/expected.safetensors")),
        adapter_(load_adapter(golden_llama(GetParam()), *small_.model)) {
    for (const char* i : {"0", "1"}) {
      ids_.push_back(read_int32(*expected_, std::string("input_ids_") + i));
      labels_.push_back(read_int32(*expected_, std::string("labels_") + i));
    }
    batch_ = make_batch(ids_, labels_);
    small_.store.seal();
  }

  models::ForwardOptions options() {
    models::ForwardOptions options = small_.forward_options(batch_);
    options.hooks = {adapter_.get()};
    return options;
  }

  SmallModel small_{"tied_gqa"};
  std::unique_ptr<io::TensorSource> expected_;
  std::unique_ptr<Adapter> adapter_;
  std::vector<std::vector<int32_t>> ids_, labels_;
  TokenBatch batch_;
};

double largest(const std::vector<float>& values) {
  double result = 0.0;
  for (const float value : values)
    result = std::max(result, static_cast<double>(std::abs(value)));
  return result;
}

TEST_P(LoraGolden, LogitsEqualPeft) {
  autograd::Tape tape(small_.store, autograd::Recording::kOff);
  const auto hidden = small_.model->forward(tape, options());
  const Tensor logits = models::head_logits(small_.model->head(), hidden.value());
  int64_t row = 0;
  for (size_t s = 0; s < ids_.size(); ++s) {
    const auto want = read_tensor(*expected_, "logits_" + std::to_string(s));
    const double bound = tolerance::network(64, 30) * largest(want);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(logits.data<float>()[row * 96 + static_cast<int64_t>(i)], want[i], bound);
    row += static_cast<int64_t>(ids_[s].size());
  }
}

TEST_P(LoraGolden, LossAndEveryGradientEqualPeft) {
  for (const bool recompute : {false, true}) {
    small_.store.begin_step(1);
    small_.store.begin_micro_batch(0);
    models::ForwardOptions training = options();
    training.gradient_checkpointing = recompute;
    const auto result = objectives::make_next_token()->train(
        *small_.model, training, 1.0f / static_cast<float>(batch_.num_trained_tokens));
    small_.store.end_round();
    small_.store.finish_gradients();
    const double loss = result.loss_sum / static_cast<double>(result.num_trained_tokens);
    EXPECT_NEAR(loss, read_tensor(*expected_, "loss")[0], tolerance::network(64, 30) * loss);
    for (const AdapterTensor& tensor : adapter_->tensors()) {
      const auto want = read_tensor(*expected_, "grad.base_model.model." + tensor.name);
      const auto found = small_.gradient(tensor.name);
      ASSERT_EQ(found.size(), want.size());
      // Forward and back: twice the depth.
      const double bound = tolerance::network(64, 60) * std::max(largest(want), 1e-3);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(found[i], want[i], bound) << tensor.name;
    }
  }
}

TEST_P(LoraGolden, MergedWeightsGiveTheSameLogits) {
  autograd::Tape tape(small_.store, autograd::Recording::kOff);
  const auto hidden = small_.model->forward(tape, options());
  // The merged model, as a delta through the frozen weight's own product.
  class Merged : public models::Hooks {
   public:
    explicit Merged(const Adapter& adapter) : adapter_(adapter) {}
    bool wraps(const models::BaseLinear&) const override { return true; }
    autograd::Variable on_linear(autograd::Tape&, const models::BaseLinear& linear,
                                 const autograd::Variable& x, const models::PassContext&,
                                 const Next&) override {
      Tensor y(Shape{x.dim(0), linear.out_features()}, x.dtype());
      linear.weight().matmul_with_delta(
          x.value(),
          [&](int64_t begin, int64_t end, float* out) {
            adapter_.add_delta(
                linear, begin, end,
                TensorView(out, DType::kFloat32, Shape{end - begin, linear.in_features()}));
          },
          y, autograd::Accumulate::kNo);
      return autograd::Variable::constant(std::move(y));
    }

   private:
    const Adapter& adapter_;
  } merged(*adapter_);
  models::ForwardOptions merged_options = small_.forward_options(batch_);
  merged_options.hooks = {&merged};
  const auto again = small_.model->forward(tape, merged_options);
  const int64_t n = batch_.num_tokens() * 32;
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_NEAR(again.value().data<const float>()[i], hidden.value().data<const float>()[i],
                tolerance::network(64, 30) * 10.0);
  }
}

INSTANTIATE_TEST_SUITE_P(Adapters, LoraGolden,
                         ::testing::Values("lora_qv", "lora_all_linear_rslora"));

TEST(Lora, StartsAtTheBaseModelWithPeftsDistribution) {
  SmallModel small("tied_gqa");
  const auto adapter = attach(small, R"({"peft_type":"LORA","r":8,"target_modules":"all-linear"})");
  adapter->initialize(42);
  EXPECT_EQ(adapter->tensors().size(), 2u * 2u * 7u);
  double sum_of_squares = 0.0;
  int64_t count = 0;
  for (const AdapterTensor& tensor : adapter->tensors()) {
    const auto lease = small.store.acquire(small.store.spec(tensor.id).unit, Pass::kForward);
    const bool is_a = tensor.name.ends_with("lora_A.weight");
    const double bound = 1.0 / std::sqrt(static_cast<double>(tensor.shape[1]));
    for (const float value : small.store.value(tensor.id).span<const float>()) {
      if (!is_a) {
        ASSERT_EQ(value, 0.0f);
        continue;
      }
      ASSERT_LE(std::abs(value), bound);
      sum_of_squares += value * value / (bound * bound);
      ++count;
    }
  }
  // Mean square of U(-1, 1) is 1/3 with deviation sqrt(4/45 / n); five deviations.
  EXPECT_NEAR(sum_of_squares / static_cast<double>(count), 1.0 / 3.0,
              5.0 * std::sqrt(4.0 / 45.0 / static_cast<double>(count)));
}

TEST(Lora, DropoutKeepsTheMeanAndFollowsTheStep) {
  SmallModel small("tied_gqa");
  const auto adapter = load_adapter(golden_llama("lora_qv"), *small.model);
  const auto dropping = [&](double p, int64_t step, models::Mode mode) {
    SmallModel fresh("tied_gqa");
    const auto lora = attach(fresh, R"({"r":4,"lora_alpha":8,"target_modules":["q_proj"],
                                        "lora_dropout":)" +
                                        std::to_string(p) + "}");
    lora->initialize(1);
    for (const AdapterTensor& tensor : lora->tensors()) {
      const std::vector<float> ones(static_cast<size_t>(tensor.shape.numel()), 0.1f);
      fresh.store.publish(tensor.id, std::as_bytes(std::span(ones)));
    }
    const TokenBatch batch = make_batch({{1, 5, 9, 60, 33}});
    models::ForwardOptions options = fresh.forward_options(batch);
    options.context.step = step;
    options.context.mode = mode;
    options.hooks = {lora.get()};
    return objectives::make_next_token()->evaluate(*fresh.model, options).loss_sum;
  };
  using models::Mode;
  const double plain = dropping(0.0, 0, Mode::kTraining);
  EXPECT_EQ(dropping(0.5, 0, Mode::kInference), plain);
  EXPECT_NE(dropping(0.5, 0, Mode::kTraining), plain);
  EXPECT_EQ(dropping(0.5, 3, Mode::kTraining), dropping(0.5, 3, Mode::kTraining));
  EXPECT_NE(dropping(0.5, 3, Mode::kTraining), dropping(0.5, 4, Mode::kTraining));
}

TEST(Lora, WhatCannotBeDoneIsNamed) {
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":["q_prj"]})").find("did you mean 'q_proj'"),
            std::string::npos);
  EXPECT_NE(attach_error(R"({"r":0,"target_modules":["q_proj"]})").find("r: expected"),
            std::string::npos);
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":["q_proj"],"use_dora":true})").find("use_dora"),
            std::string::npos);
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":["q_proj"],"rank_pattern":{"a":2}})")
                .find("rank_pattern"),
            std::string::npos);
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":["q_proj"],"init_lora_weights":"pissa"})")
                .find("pissa"),
            std::string::npos);
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":"model.layers.[0-"})").find("regular"),
            std::string::npos);
}

TEST(Lora, AnAdapterOfAnotherModelIsRefused) {
  SmallModel small("head_dim");
  EXPECT_THROW(load_adapter(golden_llama("lora_qv"), *small.model), DataError);
}

TEST(Lora, PatternsAndPathsChooseLayers) {
  SmallModel by_pattern("tied_gqa");
  EXPECT_EQ(
      attach(by_pattern, R"({"r":4,"target_modules":".*layers\\.1\\..*q_proj"})")->tensors().size(),
      2u);
  // The same in a run's YAML, with a rank above the narrow side of the linear, as PEFT allows.
  io::ConfigErrors errors;
  const io::YamlNode section = io::YamlNode::parse(
      "{lora_rank: 40, target_modules: '.*layers\\.1\\..*q_proj'}", "run.yaml", errors);
  SmallModel by_yaml("tied_gqa");
  EXPECT_EQ(lora_from_yaml(section)->attach(*by_yaml.model)->tensors().size(), 2u);
  EXPECT_TRUE(errors.messages().empty());
  SmallModel by_path("tied_gqa");
  const auto adapter = attach(
      by_path,
      R"({"r":4,"target_modules":["model.layers.0.self_attn.q_proj","layers.1.mlp.up_proj"]})");
  EXPECT_EQ(adapter->tensors().size(), 4u);
  // Leaf names would catch more layers than were asked for, so whole paths are written.
  EXPECT_NE(adapter->peft_config("base").dump().find("model.layers.0.self_attn.q_proj"),
            std::string::npos);
}

}  // namespace
}  // namespace shardtune::adapters
