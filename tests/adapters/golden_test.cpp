// Every method against PEFT: logits, loss and the gradient of every trained tensor, whole, and
// merged weights that give the same logits. One folder of tests/golden/adapters per case.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "adapters/adapter.h"
#include "io/file.h"
#include "io/json.h"
#include "io/yaml_node.h"
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

/// The run's section that trains an adapter whose saved tensors are not what is trained.
std::string trained_section(const std::string& folder) { return folder + "/run.yaml"; }

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
  const io::Json config = io::read_json_file(path);
  const bool is_peft = config.find("peft_type") != nullptr;
  return io::JsonReader(config, path).string(is_peft ? "base_model_name_or_path" : "model_name");
}

models::LoadOptions load_options(const std::string& folder) {
  models::LoadOptions options;
  const auto source = models::open_model_source(testing::golden(base_of(folder)));
  options.trained = read_adapter_options(folder)->trained_base(source->config());
  return options;
}

std::vector<std::string> trained_cases() {
  std::vector<std::string> paths = cases();
  std::erase_if(paths, [](const std::string& path) {
    return !std::filesystem::exists(trained_section(path));
  });
  return paths;
}

class GoldenCase : public ::testing::TestWithParam<std::string> {
 protected:
  GoldenCase() : expected_(io::open_safetensors(GetParam() + "/expected.safetensors")) {
    const auto inputs = io::open_safetensors(golden_llama("lora_qv") + "/expected.safetensors");
    for (const char* i : {"0", "1"}) {
      ids_.push_back(read_int32(*inputs, std::string("input_ids_") + i));
      labels_.push_back(read_int32(*inputs, std::string("labels_") + i));
    }
    batch_ = make_batch(ids_, labels_);
    batch_.task_ids = {1, 0};
  }

  void expect_logits();
  double train(bool recompute);
  void expect_near(const std::vector<float>& found, const std::string& name) const;

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

class AdapterGolden : public GoldenCase {
 protected:
  AdapterGolden() {
    adapter_ = load_adapter(GetParam(), *small_.model);
    small_.store.seal();
  }
};

void GoldenCase::expect_logits() {
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

double GoldenCase::train(bool recompute) {
  small_.store.begin_step(1);
  small_.store.begin_micro_batch(0);
  models::ForwardOptions training = options();
  training.gradient_checkpointing = recompute;
  std::vector<double> extra_losses;
  training.extra_losses = &extra_losses;
  const auto result = objectives::make_next_token()->train(
      *small_.model, training, 1.0f / static_cast<float>(batch_.num_trained_tokens));
  small_.store.end_round();
  small_.store.finish_gradients();
  return result.loss_sum / static_cast<double>(result.num_trained_tokens) + result.extra_loss;
}

void GoldenCase::expect_near(const std::vector<float>& found, const std::string& name) const {
  const auto want = read_tensor(*expected_, name);
  ASSERT_EQ(found.size(), want.size()) << name;
  // Forward and back: twice the depth.
  const double bound = tolerance::network(64, 60) * std::max(largest(want), 1e-3);
  for (size_t i = 0; i < want.size(); ++i)
    ASSERT_NEAR(found[i], want[i], bound) << name;
}

TEST_P(AdapterGolden, LogitsEqualPeft) { expect_logits(); }

TEST_P(AdapterGolden, LossAndEveryGradientEqualPeft) {
  for (const bool recompute : {false, true}) {
    const double loss = train(recompute);
    EXPECT_NEAR(loss, read_tensor(*expected_, "loss")[0], tolerance::network(64, 30) * loss);
    if (std::filesystem::exists(trained_section(GetParam())))
      continue;  // TrainedForm has the gradients
    for (const SavedTensor& tensor : adapter_->saved_tensors()) {
      if (tensor.sources.empty())
        continue;  // a constant
      const std::string key = "grad." + tensor.prefix + tensor.name;
      if (expected_->find(key) == nullptr) {
        EXPECT_TRUE(tensor.name == "lm_head.weight") << tensor.name;  // tied: once among PEFT's
        continue;
      }
      std::vector<std::vector<float>> gradients;
      for (const ParameterId id : tensor.sources)
        gradients.push_back(small_.gradient(small_.store.spec(id).name));
      std::vector<float> found(static_cast<size_t>(tensor.shape.numel()));
      tensor.compose(gradients, found);  // linear in the sources
      expect_near(found, key);
    }
  }
}

/// Adapters that are trained in another form than they are saved in.
class TrainedForm : public GoldenCase {
 protected:
  TrainedForm() {
    const std::string path = trained_section(GetParam());
    io::ConfigErrors errors;
    const io::YamlNode section =
        io::YamlNode::parse(io::read_text_file(path, 1 << 16), path, errors);
    adapter_ = adapter_options_from_yaml(section)->attach(*small_.model);
    EXPECT_TRUE(errors.messages().empty());
    small_.store.seal();
    for (const AdapterTensor& tensor : adapter_->tensors()) {
      const auto values = read_tensor(*expected_, "value." + tensor.name);
      small_.store.publish(tensor.id, std::as_bytes(std::span(values)));
    }
  }
};

TEST_P(TrainedForm, LogitsLossAndEveryGradientEqualPeft) {
  expect_logits();
  for (const bool recompute : {false, true}) {
    const double loss = train(recompute);
    EXPECT_NEAR(loss, read_tensor(*expected_, "loss")[0], tolerance::network(64, 30) * loss);
    for (const AdapterTensor& tensor : adapter_->tensors())
      expect_near(small_.gradient(tensor.name), "grad." + tensor.name);
  }
}

TEST_P(TrainedForm, IsSavedAsPeftSavesIt) {
  const auto file = io::open_safetensors(GetParam() + "/adapter_model.safetensors");
  for (const SavedTensor& tensor : adapter_->saved_tensors()) {
    std::vector<std::vector<float>> sources;
    for (const ParameterId id : tensor.sources)
      sources.push_back(read_tensor(*expected_, "value." + small_.store.spec(id).name));
    std::vector<float> found(static_cast<size_t>(tensor.shape.numel()));
    tensor.compose(sources, found);
    const auto want = read_tensor(*file, tensor.prefix + tensor.name);
    ASSERT_EQ(found.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(found[i], want[i], tolerance::network(64, 3) * largest(want)) << tensor.name;
  }
  const io::Json theirs = io::read_json_file(GetParam() + "/adapter_config.json");
  EXPECT_EQ(adapter_->peft_config(base_of(GetParam())).dump(), theirs.dump());
}

TEST_P(AdapterGolden, MergedWeightsGiveTheSameLogits) {
  if (!adapter_->mergeable())
    GTEST_SKIP() << adapter_->method() << " cannot be merged";
  if (adapter_->changes(Adapter::Table::kEmbedding) || adapter_->changes(Adapter::Table::kHead))
    GTEST_SKIP() << "tests/export/lora_tables_test.cpp merges tables";
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

std::string case_name(const ::testing::TestParamInfo<std::string>& info) {
  return std::filesystem::path(info.param).filename().string();
}

INSTANTIATE_TEST_SUITE_P(Methods, AdapterGolden, ::testing::ValuesIn(cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Methods, TrainedForm, ::testing::ValuesIn(trained_cases()), case_name);

}  // namespace
}  // namespace shardtune::adapters
