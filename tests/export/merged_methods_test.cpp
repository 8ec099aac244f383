// Every mergeable configuration of configs/adapters, trained on an NF4 and on an int8 base: the
// merged model has the adapter's logits, and the report says how much of the change is left. The
// export itself compares the logits, under a bound of their rounding; here is that the adapter
// changes them by far more than that.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "export/exporter.h"
#include "models/head.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"
#include "tests/trainer/small_run.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::SmallRun;

bool adds_no_weights(const adapters::AdapterOptions& options) {
  const std::string method(options.method());
  return options.front_tokens().positions > 0 || method == "adaption_prompt" ||
         method == "bottleneck";
}

/// freeze and full train weights, which a quantised base does not have.
bool needs_weights(const adapters::AdapterOptions& options) {
  return options.method() == "freeze" || options.method() == "full";
}

std::vector<std::string> configurations() {
  std::vector<std::string> paths;
  for (const auto& entry :
       fs::directory_iterator(std::string(SHARDTUNE_SOURCE_DIR) + "/configs/adapters")) {
    if (entry.path().extension() != ".yaml")
      continue;
    const auto options = trainer::load_config(entry.path().string(), {}).adapter.options;
    const bool is_in_the_base = options->merge_aware().has_value();  // low_bit_test.cpp has it
    if (!adds_no_weights(*options) && !needs_weights(*options) && !is_in_the_base)
      paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  return paths;
}

testing::TinyShape shape_for(const std::string& path) {
  testing::TinyShape shape;
  if (path.ends_with("bitfit.yaml"))  // llama has no bias
    shape.model_type = "qwen2";
  return shape;
}

class MergedMethods : public ::testing::TestWithParam<std::tuple<std::string, const char*>> {
 protected:
  MergedMethods() : small_(shape_for(std::get<0>(GetParam()))) {}

  void train() {
    const auto quoted = [](const fs::path& path) { return "\"" + path.string() + "\""; };
    std::vector<std::string> overrides = {
        "model.model_name_or_path=" + quoted(small_.path("model")),
        "model.compute_dtype=float32",
        "quantization.method=" + std::string(std::get<1>(GetParam())),
        "data.train=[{path: " + quoted(small_.path("train.jsonl")) + ", format: completion}]",
        "data.chat_template=chatml",
        "data.max_length=96",
        "training.global_batch_size=3",
        "training.max_steps=3",
        "training.warmup_ratio=0",
        "training.learning_rate=2e-2",
        "checkpoint.save_steps=0",
        "parallel.threads=1",
        "checkpoint.output_dir=" + quoted(small_.path("run"))};
    if (std::get<0>(GetParam()).ends_with("adalora.yaml"))
      overrides.insert(overrides.end(),
                       {"adapter.tinit=0", "adapter.tfinal=1", "adapter.deltaT=1"});
    if (std::get<1>(GetParam()) != std::string("nf4"))
      overrides.emplace_back("quantization.double_quant=false");
    small_.run(trainer::load_config(std::get<0>(GetParam()), overrides));
  }

  void load() {
    const std::string folder = (small_.path("run") / "adapter").string();
    provenance_ = read_provenance(folder).value();
    source_ = models::open_model_source(small_.path("model").string());
    models::LoadOptions options;
    options.quantization = provenance_.quantization;
    options.trained = adapters::read_adapter_options(folder)->trained_base(source_->config());
    model_ = models::load_model(*source_, store_, options);
    adapter_ = adapters::load_adapter(folder, *model_);
  }

  io::Json export_as(const std::string& out, DType dtype, adapters::Adapter* adapter) {
    const LoadBack load_back = [this](const models::ModelSource& from) -> models::Model& {
      stores_.push_back(
          std::make_unique<parallel::ShardedParameterStore>(*comm_, parallel::ZeroStage::k0));
      models_.push_back(models::load_model(from, *stores_.back(), {}));
      return *models_.back();
    };
    ExportOptions options;
    options.dtype = dtype;
    const ExportRequest request{*model_,     *source_, adapter,  nullptr,
                                provenance_, options,  load_back};
    OutputFolder output(small_.path(out), Existing::kRefuse);
    io::Json report = export_hf(request, output);
    output.commit();
    return report;
  }

  /// Of the last token, from a model that was read back.
  std::vector<float> logits_of(models::Model& model, const std::vector<models::Hooks*>& hooks) {
    const TokenBatch batch = testing::make_batch({{72, 101, 108, 108, 111, 32, 33}});
    models::ForwardOptions options;
    options.context.batch = &batch;
    options.hooks = hooks;
    autograd::Tape tape(model.store(), autograd::Recording::kOff);
    const auto hidden = model.forward(tape, options);
    const Tensor logits = models::head_logits(model.head(), hidden.value());
    const auto values = logits.span<const float>();
    return {values.begin(), values.begin() + 7 * model.config().vocab_size};
  }

  SmallRun small_;
  Provenance provenance_;
  std::unique_ptr<parallel::Communicator> comm_ = parallel::make_single_communicator();
  parallel::ShardedParameterStore store_{*comm_, parallel::ZeroStage::k0};
  std::unique_ptr<models::ModelSource> source_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<adapters::Adapter> adapter_;
  std::vector<std::unique_ptr<parallel::ShardedParameterStore>> stores_;
  std::vector<std::unique_ptr<models::Model>> models_;
};

TEST_P(MergedMethods, HaveTheAdaptersLogitsOnAQuantisedBase) {
  train();
  load();
  ASSERT_TRUE(adapter_->mergeable());
  const io::Json exact = export_as("exact", DType::kFloat32, adapter_.get());
  models::Model& merged = *models_.back();
  const auto with = logits_of(*model_, {adapter_.get()}), without = logits_of(*model_, {});
  const auto found = logits_of(merged, {});
  ASSERT_EQ(found.size(), with.size());
  double change = 0.0, error = 0.0;
  for (size_t i = 0; i < with.size(); ++i) {
    change = std::max(change, static_cast<double>(std::abs(with[i] - without[i])));
    error = std::max(error, static_cast<double>(std::abs(with[i] - found[i])));
  }
  // BitFit's and modules_to_save's change is in the model itself.
  const bool is_of_the_model = model_->trained_tensors().size() > 0;
  EXPECT_TRUE(change > 1e-3 || is_of_the_model) << change;
  EXPECT_LE(error, tolerance::network(288, 30) * testing::largest(with));
  if (change > 0.0) {
    const double lost = exact.find("delta_rounding_error")->as_number();
    EXPECT_LT(lost, 1e-3);
    const io::Json rounded = export_as("rounded", DType::kBFloat16, adapter_.get());
    EXPECT_GT(rounded.find("delta_rounding_error")->as_number(), lost);
    std::cout << "change " << change << ", error " << error << ", lost in float32 " << lost
              << ", in bfloat16 " << rounded.find("delta_rounding_error")->as_number() << "\n";
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, MergedMethods,
                         ::testing::Combine(::testing::ValuesIn(configurations()),
                                            ::testing::Values("nf4", "int8")),
                         [](const auto& info) {
                           return fs::path(std::get<0>(info.param)).stem().string() + "_" +
                                  std::get<1>(info.param);
                         });

}  // namespace
}  // namespace shardtune::exporting
