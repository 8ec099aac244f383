// Adapters that train parts of the base: PEFT's folders read and written again with the same bits,
// and merged models that hold what was trained. Cases of tests/golden/adapters.
#include <gtest/gtest.h>

#include "tests/export/saved_adapter.h"

namespace shardtune::exporting {
namespace {

using testing::golden;
using testing::read_tensor;

struct Case {
  const char* adapter;
  const char* base;
};

class TrainedBase : public ::testing::TestWithParam<Case> {
 protected:
  static models::LoadOptions options() {
    models::LoadOptions options;
    options.trained =
        adapters::read_adapter_options(golden(std::string("adapters/") + GetParam().adapter))
            ->trained_base(models::open_model_source(golden(GetParam().base))->config());
    return options;
  }

  SavedAdapter saved_{GetParam().adapter, GetParam().base, options()};
};

TEST_P(TrainedBase, PeftsFolderComesBackBitForBit) {
  saved_.expect_comes_back("adapter_model.safetensors");
  const io::Json ours = io::read_json_file((saved_.temp.path() / "a/adapter_config.json").string());
  const io::Json theirs = io::read_json_file(saved_.folder + "/adapter_config.json");
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
  saved_.merge();
  const auto merged = io::open_safetensors(saved_.temp.path() / "merged");
  const auto saved = io::open_safetensors(saved_.folder + "/adapter_model.safetensors");
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
  const io::Json config = io::read_json_file((saved_.temp.path() / "merged/config.json").string());
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
