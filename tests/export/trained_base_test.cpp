// Adapters that train parts of the base: PEFT's folders read and written again with the same bits,
// and merged models that hold what was trained. Cases of tests/golden/adapters.
#include <gtest/gtest.h>

#include <filesystem>

#include "export/exporter.h"
#include "export/peft_adapter.h"
#include "tests/support/small_model.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::golden;
using testing::read_tensor;
using testing::SmallModel;
using testing::TempFolder;

struct Case {
  const char* adapter;
  const char* base;
};

class TrainedBase : public ::testing::TestWithParam<Case> {
 protected:
  static std::string folder() { return golden(std::string("adapters/") + GetParam().adapter); }
  static models::LoadOptions options() {
    models::LoadOptions options;
    options.trained = adapters::read_adapter_options(folder())->trained_base(
        models::open_model_source(golden(GetParam().base))->config());
    return options;
  }
  Provenance provenance() const {
    Provenance provenance;
    provenance.base_sha256 = small_.source->content_hash();
    return provenance;
  }

  SmallModel small_{GetParam().base, options()};
  std::unique_ptr<adapters::Adapter> adapter_ = adapters::load_adapter(folder(), *small_.model);
  TempFolder temp_;
};

TEST_P(TrainedBase, PeftsFolderComesBackBitForBit) {
  write_peft_adapter(*adapter_, values_of(small_.store), temp_.path() / "a", provenance(),
                     Existing::kRefuse);
  const auto original = io::open_safetensors(folder() + "/adapter_model.safetensors");
  const auto written = io::open_safetensors(temp_.path() / "a/adapter_model.safetensors");
  EXPECT_EQ(written->tensors().size(), original->tensors().size());
  for (const io::TensorInfo& tensor : original->tensors()) {
    ASSERT_NE(written->find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(written->find(tensor.name)->shape, tensor.shape) << tensor.name;
    EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
  }
  const io::Json ours = io::read_json_file((temp_.path() / "a/adapter_config.json").string());
  const io::Json theirs = io::read_json_file(folder() + "/adapter_config.json");
  for (const char* key : {"bias", "modules_to_save", "ensure_weight_tying", "r", "fan_in_fan_out",
                          "target_modules", "use_dora"}) {
    const bool turns = std::string(key) == "fan_in_fan_out" && ours.find(key)->dump() == "false" &&
                       theirs.find("target_modules")->is_string();
    EXPECT_TRUE(turns || ours.find(key)->dump() == theirs.find(key)->dump())
        << key << ": " << ours.find(key)->dump() << " for " << theirs.find(key)->dump();
  }
}

// The export compares the logits itself.
TEST_P(TrainedBase, TheMergedModelHoldsWhatWasTrained) {
  std::unique_ptr<SmallModel> again;
  ExportRequest request{
      *small_.model, *small_.source, adapter_.get(), nullptr, provenance(), {}, {}};
  request.options.dtype = DType::kFloat32;
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store(*comm, parallel::ZeroStage::k0);
  std::unique_ptr<models::Model> loaded;
  request.load_back = [&](const models::ModelSource& source) -> models::Model& {
    loaded = models::load_model(source, store, {});
    return *loaded;
  };
  OutputFolder output(temp_.path() / "merged", Existing::kRefuse);
  export_hf(request, output);
  output.commit();
  const auto merged = io::open_safetensors(temp_.path() / "merged");
  const auto saved = io::open_safetensors(folder() + "/adapter_model.safetensors");
  int compared = 0;
  for (const io::TensorInfo& tensor : merged->tensors()) {
    const std::string key = "base_model.model." + tensor.name;
    if (saved->find(key) != nullptr) {
      EXPECT_EQ(read_tensor(*merged, tensor.name), read_tensor(*saved, key)) << key;
      ++compared;
    }
  }
  const bool has_only_targets = std::string(GetParam().adapter).starts_with("trained_bias_");
  EXPECT_TRUE(compared > 0 || has_only_targets);
  const bool splits = std::string(GetParam().adapter) == "trained_head" ||
                      std::string(GetParam().adapter) == "trained_embedding";
  EXPECT_EQ(merged->find("lm_head.weight") != nullptr,
            splits || std::string(GetParam().adapter) == "full");
  const io::Json config = io::read_json_file((temp_.path() / "merged/config.json").string());
  if (splits) {
    EXPECT_FALSE(config.find("tie_word_embeddings")->as_bool());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, TrainedBase,
    ::testing::Values(Case{"trained_bias_all", "families/gpt2"},
                      Case{"trained_bias_dora", "families/gpt2"},
                      Case{"trained_bias_only", "families/qwen2_tied"},
                      Case{"trained_embedding", "tied_gqa"}, Case{"trained_head", "tied_gqa"},
                      Case{"trained_linears", "tied_gqa"}, Case{"trained_tied", "tied_gqa"},
                      Case{"bitfit", "families/gpt2"}, Case{"full", "families/gpt2"}),
    [](const auto& info) { return std::string(info.param.adapter); });

}  // namespace
}  // namespace shardtune::exporting
