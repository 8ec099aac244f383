// Bottleneck adapters beside what golden_test.cpp compares: AdapterHub's configuration, which
// options go together, what values start from, and dropout.
#include <gtest/gtest.h>

#include <cmath>

#include "adapters/adapter.h"
#include "io/json.h"
#include "io/yaml_node.h"
#include "models/head.h"
#include "tests/support/small_model.h"

namespace shardtune::adapters {
namespace {

using testing::golden;
using testing::SmallModel;

constexpr const char* kSaved[] = {"bottleneck_houlsby",       "bottleneck_pfeiffer",
                                  "bottleneck_parallel",      "bottleneck_plus",
                                  "bottleneck_norms",         "bottleneck_parallel_norm",
                                  "bottleneck_bare",          "gpt2_bottleneck_houlsby",
                                  "gpt2_bottleneck_pfeiffer", "gpt2_bottleneck_parallel"};

struct Section {
  std::unique_ptr<AdapterOptions> options;
  std::string errors;
};

Section section_of(const std::string& yaml) {
  io::ConfigErrors errors;
  Section section;
  section.options = adapter_options_from_yaml(io::YamlNode::parse(yaml, "run.yaml", errors));
  for (const std::string& message : errors.messages())
    section.errors += message + "\n";
  return section;
}

std::string refusal_of(const std::string& yaml, SmallModel& small) {
  Section section = section_of(yaml);
  if (!section.errors.empty())
    return section.errors;
  try {
    section.options->attach(*small.model);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(BottleneckConfig, IsWrittenAsAdapterHubWritesIt) {
  for (const std::string name : kSaved) {
    SmallModel small(name.starts_with("gpt2") ? "families/gpt2" : "tied_gqa");
    const std::string folder = golden("adapters/" + name);
    const io::Json theirs = io::read_json_file(folder + "/adapter_config.json");
    const auto adapter = load_adapter(folder, *small.model);
    EXPECT_EQ(adapter->peft_config(theirs.find("model_name")->as_string()).dump(2), theirs.dump(2));
  }
}

TEST(BottleneckConfig, ReadsBackItsOwnKeys) {
  for (const std::string yaml :
       {"{method: bottleneck}", "{method: bottleneck, config: houlsby, dropout: 0.25}",
        "{method: bottleneck, config: scaled_par_bn, leave_out: [1]}",
        "{method: bottleneck, reduction_factor: {'1': 12.5, default: 8}, scaling: channel}"}) {
    const Section first = section_of(yaml);
    ASSERT_EQ(first.errors, "");
    std::string again;
    for (const auto& [key, value] : first.options->keys())
      again += (again.empty() ? "{" : ", ") + key + ": " + value;
    const Section second = section_of(again + "}");
    EXPECT_EQ(second.errors, "") << again;
    EXPECT_EQ(second.options->keys(), first.options->keys());
  }
}

TEST(BottleneckConfig, PresetsAreThoseOfTheLibrary) {
  const auto value = [](const std::string& config, const std::string& key) {
    for (const auto& [name, text] :
         section_of("{method: bottleneck, config: " + config + "}").options->keys()) {
      if (name == key)
        return text;
    }
    return std::string("none");
  };
  EXPECT_EQ(value("double_seq_bn", "mh_adapter"), "true");
  EXPECT_EQ(value("double_seq_bn", "non_linearity"), "swish");
  EXPECT_EQ(value("double_seq_bn", "original_ln_before"), "false");
  EXPECT_EQ(value("seq_bn", "mh_adapter"), "false");
  EXPECT_EQ(value("seq_bn", "original_ln_before"), "true");
  EXPECT_EQ(value("seq_bn", "reduction_factor"), "16");
  EXPECT_EQ(value("par_bn", "is_parallel"), "true");
  EXPECT_EQ(value("par_bn", "scaling"), "4.0");
  EXPECT_EQ(value("par_bn", "init_weights"), "mam_adapter");
  EXPECT_EQ(value("par_bn", "reduction_factor"), "2");
}

TEST(BottleneckConfig, WhatDoesNotGoTogetherIsRefused) {
  SmallModel small("tied_gqa");  // two layers of width 32
  const auto expect = [&](const std::string& keys, const std::string& part) {
    const std::string message = refusal_of("{method: bottleneck, " + keys + "}", small);
    EXPECT_NE(message.find(part), std::string::npos) << keys << ": " << message;
  };
  expect("use_gating: true", "a token would see those after it");
  expect("phm_layer: true", "Compacter");
  expect("residual_before_ln: post_add", "Write true or false");
  expect("cross_adapter: true", "no cross attention");
  expect("stochastic_depth: 0.1", "dropout");
  expect("inv_adapter: nice", "invertible");
  expect("output_adapter: false", "found neither");
  expect("non_linearity: leakyrelu", "leakyrelu");
  expect("scaling: learnd", "scaling: expected a number");
  expect("adapter_name: a.b", "letters, digits");
  expect("leave_out: [0, 1]", "every layer is left out");
  expect("leave_out: [2]", "expected layers from 0 to 1, found 2");
  expect("reduction_factor: {'2': 4, default: 8}", "expected layers from 0 to 1, found 2");
  expect("reduction_factor: {'1': 4}", "expected a factor for layer 0");
  expect("reduction_factor: {first: 4}", "found 'first'");
  expect("reduction_factor: 0", "from 0.001");
  expect("target_modules: [q_proj]", "target_modules");
  EXPECT_EQ(refusal_of("{method: bottleneck, reduction_factor: 64}", small), "");  // width 1
}

TEST(BottleneckConfig, OtherMethodsOfTheLibraryAreRefused) {
  const auto message = [](const std::string& text) {
    try {
      adapter_options_from_peft(io::parse_json(text, "c.json"), "c.json");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(message(R"({"config": {"architecture": "lora", "r": 8}, "name": "a"})")
                .find("bottleneck adapters alone"),
            std::string::npos);
  EXPECT_NE(message(R"({"config": 3, "name": "a"})").find("bottleneck adapters alone"),
            std::string::npos);
  EXPECT_NE(message(R"({"config": {"mh_adapter": true, "output_adapter": true}})").find("name"),
            std::string::npos);
  EXPECT_NE(
      message(R"({"config": {"output_adapter": true, "x": 1}, "name": "a"})").find("x is not"),
      std::string::npos);
}

std::vector<float> initial_values(const std::string& yaml, const std::string& tensor) {
  SmallModel small("tied_gqa");
  const auto adapter = section_of(yaml).options->attach(*small.model);
  small.store.seal();
  adapter->initialize(7);
  for (const AdapterTensor& each : adapter->tensors()) {
    if (!each.name.ends_with("layers.0.output_adapters.adapters.default." + tensor))
      continue;
    const UnitLease lease = small.store.acquire(small.store.spec(each.id).unit, Pass::kForward);
    const auto values = small.store.value(each.id).span<const float>();
    return {values.begin(), values.end()};
  }
  return {};
}

double deviation_of(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float value : values)
    sum += static_cast<double>(value) * value;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

TEST(BottleneckStart, HasTheDistributionAskedFor) {
  const std::string start = "{method: bottleneck, reduction_factor: 0.25, init_weights: ";
  const auto bert = initial_values(start + "bert}", "adapter_up.weight");
  ASSERT_EQ(bert.size(), 4096u);
  EXPECT_NEAR(deviation_of(bert), 0.02, 0.001);
  // A normal cut at two deviations has 0.88 of its deviation.
  const auto houlsby = initial_values(start + "houlsby}", "adapter_down.0.weight");
  EXPECT_NEAR(deviation_of(houlsby), 0.0088, 0.0004);
  EXPECT_LE(testing::largest(houlsby), 0.02);
  EXPECT_EQ(testing::largest(initial_values(start + "mam_adapter}", "adapter_up.weight")), 0.0);
  const double bound = 1.0 / std::sqrt(32.0);
  const auto mam = initial_values(start + "mam_adapter}", "adapter_down.0.weight");
  EXPECT_LE(testing::largest(mam), bound);
  EXPECT_NEAR(deviation_of(mam), bound / std::sqrt(3.0), 0.005);
}

TEST(BottleneckDropout, DropsInTrainingAlone) {
  const TokenBatch batch = testing::make_batch({{5, 9, 11, 3, 8}});
  const auto hidden = [&](const std::string& yaml, models::Mode mode) {
    SmallModel small("tied_gqa");
    const auto adapter = section_of(yaml).options->attach(*small.model);
    small.store.seal();
    adapter->initialize(7);
    models::ForwardOptions options = small.forward_options(batch);
    options.context.mode = mode;
    options.hooks = {adapter.get()};
    autograd::Tape tape(small.store, autograd::Recording::kOff);
    const auto output = small.model->forward(tape, options);
    const auto values = output.value().span<const float>();
    return std::vector<float>(values.begin(), values.end());
  };
  const std::string drops = "{method: bottleneck, dropout: 0.5}";
  const auto plain = hidden("{method: bottleneck}", models::Mode::kTraining);
  EXPECT_EQ(hidden(drops, models::Mode::kInference), plain);
  EXPECT_NE(hidden(drops, models::Mode::kTraining), plain);
  EXPECT_EQ(hidden(drops, models::Mode::kTraining), hidden(drops, models::Mode::kTraining));
}

}  // namespace
}  // namespace shardtune::adapters
