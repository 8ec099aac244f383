// Merge-aware LoRA against torch with bitsandbytes' quantiser: merged weights bit for bit, logits,
// loss and gradients; and what it does not go with.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "adapters/adapter.h"
#include "io/yaml_node.h"
#include "models/head.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

models::LoadOptions in_format(const std::string& method) {
  models::LoadOptions options;
  options.quantization.method = method;
  return options;
}

struct Case {
  std::string format;
  quant::KeptForm form;
};

class MergeAwareGolden : public ::testing::TestWithParam<Case> {
 protected:
  MergeAwareGolden() {
    const auto inputs = io::open_safetensors(golden("lora_qv") + "/expected.safetensors");
    std::vector<std::vector<int32_t>> ids, labels;
    for (const char* i : {"0", "1"}) {
      ids.push_back(read_int32(*inputs, std::string("input_ids_") + i));
      labels.push_back(read_int32(*inputs, std::string("labels_") + i));
    }
    batch_ = make_batch(ids, labels);
    const auto options = read_adapter_options(folder_);
    options->set_merge_aware(GetParam().form);
    adapter_ = options->attach(*small_.model);
    adapter_->keep_base(*small_.source, [](const models::BaseLinear&) { return true; });
    read_adapter_values(folder_, *adapter_, *small_.model);
    small_.store.seal();
  }

  models::ForwardOptions options() {
    models::ForwardOptions options = small_.forward_options(batch_);
    options.hooks = {adapter_.get()};
    return options;
  }
  void expect_near(const std::vector<float>& found, const std::string& name, int depth) const {
    const auto want = read_tensor(*expected_, name);
    ASSERT_EQ(found.size(), want.size()) << name;
    const double bound = tolerance::network(64, depth) * std::max(largest(want), 1e-3);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(found[i], want[i], bound) << name;
  }
  std::vector<float> dequantised(const std::string& path) const {
    for (models::BaseLinear* linear : small_.model->linears()) {
      if (linear->path() != path)
        continue;
      const UnitLease lease = small_.model->store().acquire(linear->unit(), Pass::kForward);
      Tensor rows({linear->out_features(), linear->in_features()}, DType::kFloat32);
      linear->dequantize_rows(0, linear->out_features(), rows);
      const auto values = rows.span<float>();
      return {values.begin(), values.end()};
    }
    return {};
  }

  std::string folder_ = golden("merge_aware/" + GetParam().format);
  SmallModel small_{"tied_gqa", in_format(GetParam().format)};
  std::unique_ptr<io::TensorSource> expected_ =
      io::open_safetensors(folder_ + "/expected.safetensors");
  std::unique_ptr<Adapter> adapter_;
  TokenBatch batch_;
};

TEST_P(MergeAwareGolden, TheBaseHoldsTheMergedWeightsBitForBit) {
  const std::string path = "model.layers.0.self_attn.q_proj";
  EXPECT_EQ(dequantised(path), read_tensor(*expected_, "merged." + path));
}

TEST_P(MergeAwareGolden, LogitsLossAndGradientsEqualTorch) {
  autograd::Tape tape(small_.store, autograd::Recording::kOff);
  const auto hidden = small_.model->forward(tape, options());
  const Tensor logits = models::head_logits(small_.model->head(), hidden.value());
  const auto all = logits.span<const float>();
  const size_t vocabulary = static_cast<size_t>(logits.dim(1));
  for (size_t s = 0; s < 2; ++s) {
    const auto first = static_cast<size_t>(batch_.sample_offsets[s]) * vocabulary;
    const auto last = static_cast<size_t>(batch_.sample_offsets[s + 1]) * vocabulary;
    const auto rows = all.subspan(first, last - first);
    expect_near({rows.begin(), rows.end()}, "logits_" + std::to_string(s), 30);
  }
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
    for (const AdapterTensor& tensor : adapter_->tensors())
      expect_near(small_.gradient(tensor.name), "grad." + tensor.prefix + tensor.name, 60);
  }
}

// A change far below the grid moves some codes, those near a border, because the original weight is
// kept.
TEST_P(MergeAwareGolden, SmallChangesAddUp) {
  const std::string path = "model.layers.0.self_attn.q_proj";
  const auto with_all = [&](float a, float b) {
    for (const AdapterTensor& tensor : adapter_->tensors()) {
      const bool is_a = tensor.name.ends_with("lora_A.weight");
      const std::vector<float> values(static_cast<size_t>(tensor.shape.numel()), is_a ? a : b);
      small_.store.publish(tensor.id, std::as_bytes(std::span(values)));
    }
    adapter_->renew_base();
    return dequantised(path);
  };
  const auto none = with_all(0.0f, 0.0f);
  const double grid = largest(none) / 127;
  const auto small = with_all(1.0f, static_cast<float>(0.05 * grid));  // times rank * scale = 6
  int64_t moved = 0;
  for (size_t i = 0; i < none.size(); ++i)
    moved += std::abs(small[i] - none[i]) > 0.4 * grid ? 1 : 0;
  EXPECT_GT(moved, 0);
  EXPECT_LT(moved, std::ssize(none) / 2);
  EXPECT_EQ(with_all(0.0f, 0.0f), none);
}

INSTANTIATE_TEST_SUITE_P(Formats, MergeAwareGolden,
                         ::testing::Values(Case{"nf4", quant::KeptForm::kBFloat16},
                                           Case{"fp4", quant::KeptForm::kInt8},
                                           Case{"int8", quant::KeptForm::kBFloat16}),
                         [](const auto& info) { return info.param.format; });

std::string option_errors(const std::string& section) {
  io::ConfigErrors errors;
  const io::YamlNode node = io::YamlNode::parse(section, "run.yaml", errors);
  adapter_options_from_yaml(node);
  std::string text;
  for (const std::string& message : errors.messages())
    text += message + "\n";
  return text;
}

TEST(MergeAware, WhatItDoesNotGoWithIsRefusedWithTheReason) {
  const auto expect = [](const std::string& keys, const std::string& reason) {
    const std::string found = option_errors("{merge_aware: true, " + keys + "}");
    EXPECT_NE(found.find(reason), std::string::npos) << keys << ": " << found;
  };
  expect("lora_dropout: 0.1", "no token can drop");
  expect("use_dora: true", "norms of merged rows");
  expect("init_lora_weights: pissa", "twice the rank");
  expect("init_lora_weights: olora", "twice the rank");
  expect("init_lora_weights: loftq", "nothing to give back");
  expect("merge_aware_weights: nf4", "The dequantised base alone does not do");
  EXPECT_NE(option_errors("{merge_aware_weights: int8}").find("belongs to merge_aware: true"),
            std::string::npos);
  EXPECT_EQ(option_errors("{merge_aware: true, merge_aware_weights: residual}"), "");
  EXPECT_NE(option_errors("{method: ia3, merge_aware: true}").find("unknown key 'merge_aware'"),
            std::string::npos);
}

TEST(MergeAware, ABaseThatIsNotQuantisedOrComputesInInt8IsRefused) {
  const auto attach = [](const std::string& format, bool in_int8) -> std::string {
    SmallModel small("tied_gqa", in_format(format));
    if (in_int8)
      small.model->linears().front()->enable_int8();
    const auto options = read_adapter_options(golden("lora_all_linear_rslora"));
    options->set_merge_aware(quant::KeptForm::kBFloat16);
    try {
      options->attach(*small.model);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(attach("none", false).find("quantization.method none"), std::string::npos);
  EXPECT_NE(attach("nf4", true).find("compute_dtype: int8"), std::string::npos);
  EXPECT_EQ(attach("int8", false), "");
}

}  // namespace
}  // namespace shardtune::adapters
