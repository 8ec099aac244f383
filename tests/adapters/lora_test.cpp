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
  for (const char* table : {"embed_tokens", "lm_head"}) {
    const std::string targets = R"({"target_modules":["q_proj",")" + std::string(table) + "\"],";
    EXPECT_EQ(attach_error(targets + R"("r":4})"), "");
    EXPECT_NE(attach_error(targets + R"("r":4,"use_dora":true})").find("adapter.use_dora"),
              std::string::npos);
    const auto both = adapter_options_from_peft(
        peft_json(targets + R"("r":4,"modules_to_save":[")" + table + "\"]}"),
        "adapter_config.json");
    SmallModel small("tied_gqa");
    models::LoadOptions trained;
    trained.trained = both->trained_base(small.model->config());
    SmallModel loaded("tied_gqa", trained);
    try {
      both->attach(*loaded.model);
      ADD_FAILURE() << "expected a refusal";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("trained whole and is among target_modules"),
                std::string::npos)
          << error.what();
    }
    const io::Json vera = io::parse_json(targets + R"("peft_type":"VERA","save_projection":true})",
                                         "adapter_config.json");
    try {
      adapter_options_from_peft(vera, "adapter_config.json")->attach(*small.model);
      ADD_FAILURE() << "expected a refusal";
    } catch (const UnsupportedError& error) {
      EXPECT_NE(std::string(error.what()).find("by method lora alone"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_NE(attach_error(R"({"r":0,"target_modules":["q_proj"]})").find("r: expected"),
            std::string::npos);
  EXPECT_NE(
      attach_error(R"({"r":4,"target_modules":["q_proj"],"use_bdlora":true})").find("use_bdlora"),
      std::string::npos);
  EXPECT_NE(attach_error(R"({"r":4,"target_modules":["q_proj"],"use_qalora":true,
                             "qalora_group_size":5})")
                .find("expected a divisor of 32 inputs"),
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

TEST(Lora, ATableOfAnotherVocabularyIsRefused) {
  for (const char* name : {"table_tied", "table_untied"}) {
    SmallModel small("families/gpt2");
    EXPECT_ANY_THROW(load_adapter(testing::golden(std::string("adapters/") + name), *small.model));
  }
}

TEST(Lora, ATableNamedByAnExpressionIsChangedAllLinearNamesNone) {
  SmallModel by_pattern("tied_gqa");
  EXPECT_EQ(
      attach(by_pattern, R"({"r":4,"target_modules":".*embed_tokens|lm_head"})")->tensors().size(),
      4u);
  SmallModel all("tied_gqa");
  const auto linears = attach(all, R"({"r":4,"target_modules":"all-linear"})");
  EXPECT_FALSE(linears->changes(Adapter::Table::kEmbedding));
  EXPECT_FALSE(linears->changes(Adapter::Table::kHead));
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
  TokenBatch batch = sample();
  SmallModel small;
  std::unique_ptr<Adapter> adapter;

  Started(const std::string& yaml, const std::string& format) : small("tied_gqa", load(format)) {
    io::ConfigErrors errors;
    const io::YamlNode section = io::YamlNode::parse(yaml, "run.yaml", errors);
    auto options = adapter_options_from_yaml(section);
    errors.throw_if_any();
    InitContext start(42);
    start.source = small.source.get();
    start.sample = &batch;
    start.forward = [this](models::Hooks& hooks) { run(hooks); };
    if (options->from_data() == AdapterOptions::FromData::kShapes)
      options = options->fitted_to_data(*small.model, start);
    adapter = options->attach(*small.model);
    small.store.seal();
    adapter->initialize(start);
  }
  static TokenBatch sample() {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 20; ++i)
      ids.push_back(i * 37 % 96);
    return make_batch({ids});
  }
  void run(models::Hooks& hooks) const {
    models::ForwardOptions options = small.forward_options(batch);
    options.hooks = {&hooks};
    autograd::Tape tape(small.model->store(), autograd::Recording::kOff);
    small.model->forward(tape, options);
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
       {"kaiming", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "eva"}) {
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

// s B A makes up for what NF4 took from W: all of it at full rank, of a lower one its best part.
TEST(Lora, LoftqGivesBackWhatQuantisationTook) {
  struct Parts {
    double taken = 0.0, given = 0.0, rest = 0.0;  // sums of squares
  };
  const auto parts_at = [](const char* rank) {
    Started started(std::string("{lora_rank: ") + rank +
                        ", lora_alpha: 8, target_modules: [q_proj], init_lora_weights: loftq, "
                        "loftq_config: {loftq_bits: 4, loftq_iter: 1}}",
                    "nf4");
    const models::BaseLinear& q = *started.small.model->linears().front();
    const auto lease = started.small.store.acquire(q.unit(), Pass::kForward);
    Tensor base(Shape{32, 32}, DType::kFloat32), merged(Shape{32, 32}, DType::kFloat32);
    Tensor weight(Shape{32, 32}, DType::kFloat32);
    q.dequantize_rows(0, 32, base);
    q.dequantize_rows(0, 32, merged);
    started.adapter->merge_rows(q, 0, 32, merged);
    started.small.source->read_rows(q.weight().name(), 0, 32, weight.data<float>());
    Parts parts;
    const auto add = [](double& sum, double difference) { sum += difference * difference; };
    for (int64_t i = 0; i < weight.numel(); ++i) {
      const double w = weight.data<float>()[i], b = base.data<float>()[i];
      add(parts.taken, w - b);
      add(parts.given, merged.data<float>()[i] - b);
      add(parts.rest, w - merged.data<float>()[i]);
    }
    return parts;
  };
  const Parts whole = parts_at("32");
  EXPECT_GT(whole.taken, 0.0);
  EXPECT_LT(whole.rest, 1e-8 * whole.taken);
  const Parts some = parts_at("4");
  // The rest of a truncated SVD is orthogonal to it, and smaller than a random part's would be.
  EXPECT_NEAR(some.given + some.rest, some.taken, 1e-4 * some.taken);
  EXPECT_GT(some.given, some.taken * 4.0 / 32.0 * 1.5);
}

// A and B as PEFT starts them (tests/golden/adapters/starts), each row of A with its column of B up
// to their sign. PEFT's LoftQ leaves the scale out: right for alpha = r alone.
TEST(Lora, StartsThatFactorTheWeightAreThoseOfPeft) {
  const auto golden = io::open_safetensors(testing::golden("adapters/starts/starts.safetensors"));
  for (const std::string init : {"pissa", "olora", "loftq"}) {
    const bool is_loftq = init == "loftq";
    Started started(
        "{lora_rank: 4, lora_alpha: 8, target_modules: [q_proj], init_lora_weights: " + init + "}",
        is_loftq ? "nf4" : "none");
    const models::BaseLinear& q = *started.small.model->linears().front();
    const auto lease = started.small.store.acquire(q.unit(), Pass::kForward);
    const auto value = [&](const char* name) {
      return started.small.store.value(started.small.store.find(q.path() + name))
          .span<const float>();
    };
    const auto a = value(".lora_A.weight"), b = value(".lora_B.weight");
    const auto peft_a = read_tensor(*golden, init + ".lora_A");
    const auto peft_b = read_tensor(*golden, init + ".lora_B");
    const double unscaled = is_loftq ? std::sqrt(2.0) : 1.0;
    for (size_t k = 0; k < 4; ++k) {
      double inner = 0.0, size = 0.0;
      for (size_t j = 0; j < 32; ++j) {
        inner += double{a[k * 32 + j]} * peft_a[k * 32 + j];
        size += double{peft_a[k * 32 + j]} * peft_a[k * 32 + j];
      }
      const double sign = inner < 0.0 ? -1.0 : 1.0;
      const double bound = 1e-4 * std::sqrt(size);  // float32 SVD at gaps of some percent
      for (size_t j = 0; j < 32; ++j) {
        EXPECT_NEAR(sign * unscaled * a[k * 32 + j], peft_a[k * 32 + j], bound)
            << init << " A " << k;
        EXPECT_NEAR(sign * unscaled * b[j * 4 + k], peft_b[j * 4 + k], bound) << init << " B " << k;
      }
    }
  }
}

// The rows of A are orthonormal eigenvectors of the inputs' second moments, the largest first.
TEST(Lora, EvaStartsWithTheDirectionsOfTheInputs) {
  struct Inputs : models::Hooks {
    bool wraps(const models::BaseLinear& linear) const override { return linear.index() == 0; }
    autograd::Variable on_linear(autograd::Tape&, const models::BaseLinear&,
                                 const autograd::Variable& x, const models::PassContext&,
                                 const Next& next) override {
      const auto at = [&](int64_t t, int64_t i) {
        return x.value().data<const float>()[t * 32 + i];
      };
      std::vector<double> mean(32, 0.0);
      for (int64_t t = 0; t < 20; ++t) {
        for (int64_t i = 0; i < 32; ++i)
          mean[static_cast<size_t>(i)] += at(t, i) / 20.0;
      }
      for (int64_t e = 0; e < 32 * 32; ++e) {
        double sum = 0.0;
        for (int64_t t = 0; t < 20; ++t)
          sum += (at(t, e / 32) - mean[static_cast<size_t>(e / 32)]) *
                 (at(t, e % 32) - mean[static_cast<size_t>(e % 32)]);
        moments.data<float>()[e] = static_cast<float>(sum);
      }
      return next(x);
    }
    Tensor moments{Shape{32, 32}, DType::kFloat32};
  } inputs;
  Started started(
      "{lora_rank: 3, target_modules: [q_proj], init_lora_weights: eva, "
      "eva_config: {rho: 1, use_label_mask: false}}",
      "none");
  started.run(inputs);
  const auto lease =
      started.small.store.acquire(started.small.model->linears()[0]->unit(), Pass::kForward);
  const TensorView a = started.small.store.value(started.adapter->tensors()[0].id);
  const auto product = [&](int64_t k, int64_t l, bool with_moments) {
    double sum = 0.0;
    for (int64_t i = 0; i < 32; ++i) {
      for (int64_t j = 0; j < 32; ++j) {
        const double m = with_moments ? inputs.moments.data<float>()[i * 32 + j] : i == j;
        sum += a.data<float>()[k * 32 + i] * m * a.data<float>()[l * 32 + j];
      }
    }
    return sum;
  };
  const double first = product(0, 0, true);
  double trace = 0.0;
  for (int64_t i = 0; i < 32; ++i)
    trace += inputs.moments.data<float>()[i * 33];
  EXPECT_GT(first, trace / 32.0);
  for (int64_t k = 0; k < 3; ++k) {
    for (int64_t l = 0; l < 3; ++l) {
      EXPECT_NEAR(product(k, l, false), k == l ? 1.0 : 0.0, 1e-5);
      if (k != l) {
        EXPECT_NEAR(product(k, l, true), 0.0, 1e-4 * first);
      }
    }
    EXPECT_GE(k == 0 ? first : product(k - 1, k - 1, true), product(k, k, true));
  }
}

std::string yaml_error(const std::string& yaml, const std::string& format) {
  try {
    Started started(yaml, format);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Lora, LoftqIsRefusedWhereItHasNothingToGiveBack) {
  const auto expect = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect(yaml_error("{init_lora_weights: loftq}", "none"), "kept as it is");
  expect(yaml_error("{init_lora_weights: loftq, loftq_config: {loftq_bits: 8}}", "nf4"),
         "expected 4");
  expect(yaml_error("{init_lora_weights: loftq, loftq_config: {loftq_iter: 5}}", "nf4"),
         "loftq_iter: 1");
  expect(yaml_error("{loftq_config: {loftq_bits: 4}}", "nf4"), "belongs to");
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
