// Every method against PEFT: logits, loss and the gradient of every trained tensor, whole, and
// merged weights that give the same logits. One folder of tests/golden/adapters per case.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "adapters/adapter.h"
#include "kernels/elementwise.h"
#include "models/head.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using testing::golden_llama;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

/// Folders with an adapter and what PEFT computes with it.
std::vector<std::string> cases() {
  std::vector<std::string> paths = {golden_llama("lora_qv"),
                                    golden_llama("lora_all_linear_rslora")};
  for (const auto& entry : std::filesystem::directory_iterator(std::string(SHARDTUNE_SOURCE_DIR) +
                                                               "/tests/golden/adapters")) {
    if (entry.is_directory() && std::filesystem::exists(entry.path() / "expected.safetensors"))
      paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  return paths;
}

/// The golden model that a case was made on: what its adapter_config.json calls the base.
std::string base_of(const std::string& folder) {
  const std::string path = folder + "/adapter_config.json";
  return io::JsonReader(io::read_json_file(path), path).string("base_model_name_or_path");
}

models::LoadOptions load_options(const std::string& folder) {
  models::LoadOptions options;
  const auto source = models::open_model_source(testing::golden(base_of(folder)));
  options.trained = read_adapter_options(folder)->trained_base(source->config());
  return options;
}

class AdapterGolden : public ::testing::TestWithParam<std::string> {
 protected:
  AdapterGolden()
      : expected_(io::open_safetensors(GetParam() + "/expected.safetensors")),
        adapter_(load_adapter(GetParam(), *small_.model)) {
    const auto inputs = io::open_safetensors(golden_llama("lora_qv") + "/expected.safetensors");
    for (const char* i : {"0", "1"}) {
      ids_.push_back(read_int32(*inputs, std::string("input_ids_") + i));
      labels_.push_back(read_int32(*inputs, std::string("labels_") + i));
    }
    batch_ = make_batch(ids_, labels_);
    small_.store.seal();
  }

  models::ForwardOptions options() {
    models::ForwardOptions options = small_.forward_options(batch_);
    options.hooks = {adapter_.get()};
    return options;
  }

  SmallModel small_{base_of(GetParam()), load_options(GetParam())};
  std::unique_ptr<io::TensorSource> expected_;
  std::unique_ptr<Adapter> adapter_;
  std::vector<std::vector<int32_t>> ids_, labels_;
  TokenBatch batch_;
};

TEST_P(AdapterGolden, LogitsEqualPeft) {
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

TEST_P(AdapterGolden, LossAndEveryGradientEqualPeft) {
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
    for (const SavedTensor& tensor : adapter_->saved_tensors()) {
      if (tensor.sources.empty())
        continue;  // a constant
      const std::string key = "grad.base_model.model." + tensor.name;
      if (expected_->find(key) == nullptr) {
        EXPECT_TRUE(tensor.name == "lm_head.weight") << tensor.name;  // tied: once among PEFT's
        continue;
      }
      const auto want = read_tensor(*expected_, key);
      std::vector<std::vector<float>> parts;
      for (const ParameterId id : tensor.sources)
        parts.push_back(small_.gradient(small_.store.spec(id).name));
      std::vector<float> found(want.size());
      ASSERT_EQ(tensor.shape.numel(), std::ssize(want));
      tensor.compose(parts, found);
      // Forward and back: twice the depth.
      const double bound = tolerance::network(64, 60) * std::max(largest(want), 1e-3);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(found[i], want[i], bound) << tensor.name;
    }
  }
}

TEST_P(AdapterGolden, MergedWeightsGiveTheSameLogits) {
  if (!adapter_->mergeable())
    GTEST_SKIP() << adapter_->method() << " cannot be merged";
  autograd::Tape tape(small_.store, autograd::Recording::kOff);
  const auto hidden = small_.model->forward(tape, options());
  // The merged model, as a delta through the frozen weight's own product.
  class Merged : public models::Hooks {
   public:
    Merged(const Adapter& adapter, const ParameterStore& store)
        : adapter_(adapter), store_(store) {}
    bool wraps(const models::BaseLinear&) const override { return true; }
    autograd::Variable on_linear(autograd::Tape&, const models::BaseLinear& linear,
                                 const autograd::Variable& x, const models::PassContext&,
                                 const Next&) override {
      Tensor y(Shape{x.dim(0), linear.out_features()}, x.dtype());
      Tensor weight(Shape{linear.out_features(), linear.in_features()}, DType::kFloat32);
      linear.dequantize_rows(0, linear.out_features(), weight);
      adapter_.merge_rows(linear, 0, linear.out_features(), weight);
      kernels::gemm(x.value(), weight, kernels::Transpose::kYes, y, kernels::Accumulate::kNo);
      if (linear.bias() != kNoParameter) {
        const Tensor bias(Shape{linear.out_features()}, DType::kFloat32);
        kernels::cast(store_.value(linear.bias()), bias);
        adapter_.merge_bias(linear, bias.span<float>());
        kernels::add_bias(bias, y);
      }
      return autograd::Variable::constant(std::move(y));
    }

   private:
    const Adapter& adapter_;
    const ParameterStore& store_;
  } merged(*adapter_, small_.store);
  models::ForwardOptions merged_options = small_.forward_options(batch_);
  merged_options.hooks = {&merged};
  const auto again = small_.model->forward(tape, merged_options);
  const int64_t n = batch_.num_tokens() * 32;
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_NEAR(again.value().data<const float>()[i], hidden.value().data<const float>()[i],
                tolerance::network(64, 30) * 10.0);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, AdapterGolden, ::testing::ValuesIn(cases()),
                         [](const auto& info) {
                           return std::filesystem::path(info.param).filename().string();
                         });

}  // namespace
}  // namespace shardtune::adapters
