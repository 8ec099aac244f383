// LoRA's initial values, dropout, patterns, starts that factor the weight, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "adapters/adapter.h"
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

io::Json peft_json(const std::string& text) {
  io::Json config = io::parse_json(text, "adapter_config.json");
  config.set("peft_type", "LORA");
  return config;
}

std::unique_ptr<Adapter> attach(SmallModel& small, const std::string& text) {
  return adapter_options_from_peft(peft_json(text), "adapter_config.json")->attach(*small.model);
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
  EXPECT_NE(
      attach_error(R"({"r":4,"target_modules":["q_proj"],"use_qalora":true})").find("use_qalora"),
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
  // The same in a run's YAML.
  io::ConfigErrors errors;
  const io::YamlNode section = io::YamlNode::parse(
      "{lora_rank: 30, target_modules: '.*layers\\.1\\..*q_proj'}", "run.yaml", errors);
  SmallModel by_yaml("tied_gqa");
  EXPECT_EQ(adapter_options_from_yaml(section)->attach(*by_yaml.model)->tensors().size(), 2u);
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

// What a start that factors the weight does on a whole model.
struct Started {
  SmallModel small;
  std::unique_ptr<Adapter> adapter;

  Started(const std::string& yaml, const std::string& format) : small("tied_gqa", load(format)) {
    io::ConfigErrors errors;
    const io::YamlNode section = io::YamlNode::parse(yaml, "run.yaml", errors);
    adapter = adapter_options_from_yaml(section)->attach(*small.model);
    errors.throw_if_any();
    small.store.seal();
    adapter->initialize(42);
  }
  static models::LoadOptions load(const std::string& format) {
    models::LoadOptions options;
    options.quantization.method = format;
    return options;
  }
  double loss(bool with_adapter) {
    const TokenBatch batch = make_batch({{1, 5, 9, 60, 33, 71, 8, 20}});
    models::ForwardOptions options = small.forward_options(batch);
    if (with_adapter)
      options.hooks = {adapter.get()};
    return objectives::make_next_token()->evaluate(*small.model, options).loss_sum;
  }
};

TEST(Lora, EveryStartIsTheBaseModelInEveryFormat) {
  for (const char* init :
       {"kaiming", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"}) {
    for (const char* format : {"none", "nf4"}) {
      for (const char* dora : {"false", "true"}) {
        if (format != std::string("nf4") && dora != std::string("false"))
          continue;
        Started started(
            std::string("{lora_rank: 4, use_dora: ") + dora + ", init_lora_weights: " + init + "}",
            format);
        const double base = started.loss(false);
        EXPECT_NEAR(started.loss(true), base, base * tolerance::network(64, 30))
            << init << " " << format << " " << dora;
      }
    }
  }
}

TEST(Lora, PissaStartsWithTheLargestSingularValuesAndIsSavedAsPlainLora) {
  Started started(
      "{lora_rank: 4, lora_alpha: 8, target_modules: [q_proj], "
      "init_lora_weights: pissa}",
      "none");
  const models::BaseLinear& q = *started.small.model->linears().front();
  const auto lease = started.small.store.acquire(q.unit(), Pass::kForward);
  Tensor weight(Shape{32, 32}, DType::kFloat32);
  q.dequantize_rows(0, 32, weight);
  const auto value = [&](const char* name) {
    return started.small.store.value(started.small.store.find(q.path() + name));
  };
  // W - s B A has its largest singular values taken out: s B A is W's best rank-4 part, so the
  // rest is orthogonal to it.
  Tensor part(Shape{32, 32}, DType::kFloat32);
  kernels::gemm(value(".lora_B.weight"), value(".lora_A.weight"), kernels::Transpose::kNo, part,
                kernels::Accumulate::kNo, 2.0f);
  double inner = 0.0, kept = 0.0, whole = 0.0;
  for (int64_t i = 0; i < part.numel(); ++i) {
    const double p = part.data<float>()[i];
    const double w = weight.data<float>()[i];
    inner += p * (w - p);
    kept += p * p;
    whole += w * w;
  }
  EXPECT_NEAR(inner, 0.0, whole * tolerance::sum_of_products(1024));
  EXPECT_GT(kept, whole * 4.0 / 32.0);  // more than a random part would hold
  // The merged weight is the base's, and so is the saved plain LoRA's.
  Tensor merged(Shape{32, 32}, DType::kFloat32);
  q.dequantize_rows(0, 32, merged);
  started.adapter->merge_rows(q, 0, 32, merged);
  for (int64_t i = 0; i < merged.numel(); ++i)
    ASSERT_NEAR(merged.data<float>()[i], weight.data<float>()[i], 1e-5);
  const auto saved = started.adapter->saved_tensors();
  ASSERT_EQ(saved.size(), 4u);  // two layers
  EXPECT_EQ(saved[0].shape, (Shape{8, 32}));
  const io::Json config = started.adapter->peft_config("base");
  EXPECT_EQ(config.find("r")->as_integer(), 8);
  EXPECT_EQ(config.find("lora_alpha")->as_integer(), 16);
}

TEST(Lora, ARankAboveTheNarrowSideIsRefused) {
  try {
    Started started("{lora_rank: 20, target_modules: [k_proj]}", "none");
    FAIL() << "expected an error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("adapter.lora_rank: expected at most 16"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace shardtune::adapters
