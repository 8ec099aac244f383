// LoRA on embedding and head: PEFT's folders read and written again, and merged models, tied or
// not, whose logits are those that PEFT computes. Cases of tests/golden/adapters.
#include <gtest/gtest.h>

#include "models/head.h"
#include "tests/export/saved_adapter.h"
#include "tests/tolerance.h"

namespace shardtune::exporting {
namespace {

using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;

struct Case {
  const char* adapter;
  const char* base;
};

class LoraTables : public ::testing::TestWithParam<Case> {
 protected:
  SavedAdapter saved_{GetParam().adapter, GetParam().base};
};

// Of PEFT's tensors all but its copies of the base.
TEST_P(LoraTables, PeftsFolderComesBackBitForBit) {
  saved_.expect_comes_back("adapter_model.safetensors", [](const std::string& name) {
    return name.ends_with(".base_layer.weight");
  });
  const io::Json ours = io::read_json_file((saved_.temp.path() / "a/adapter_config.json").string());
  const io::Json theirs = io::read_json_file(saved_.folder + "/adapter_config.json");
  for (const char* key : {"r", "lora_alpha", "rank_pattern", "use_rslora", "target_modules"})
    EXPECT_EQ(ours.find(key)->dump(), theirs.find(key)->dump()) << key;
}

// The export compares the logits with the adapter's itself.
TEST_P(LoraTables, TheMergedModelHasPeftsLogits) {
  saved_.merge();
  const auto expected = io::open_safetensors(saved_.folder + "/expected.safetensors");
  const auto inputs = io::open_safetensors(golden("lora_qv") + "/expected.safetensors");
  for (const std::string i : {"0", "1"}) {
    const TokenBatch batch = make_batch({read_int32(*inputs, "input_ids_" + i)});
    models::ForwardOptions options;
    options.context.batch = &batch;
    autograd::Tape tape(saved_.merged_store, autograd::Recording::kOff);
    const auto hidden = saved_.merged->forward(tape, options);
    const Tensor logits = models::head_logits(saved_.merged->head(), hidden.value());
    const auto want = read_tensor(*expected, "logits_" + i);
    const double bound = tolerance::network(64, 30) * largest(want);
    for (size_t k = 0; k < want.size(); ++k)
      ASSERT_NEAR(logits.data<float>()[k], want[k], bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LoraTables,
                         ::testing::Values(Case{"table_tied", "tied_gqa"},
                                           Case{"table_tied_head", "tied_gqa"},
                                           Case{"table_untied", "head_dim"},
                                           Case{"table_gpt2", "families/gpt2"}),
                         [](const auto& info) { return std::string(info.param.adapter); });

}  // namespace
}  // namespace shardtune::exporting
