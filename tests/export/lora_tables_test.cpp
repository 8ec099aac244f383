// LoRA on embedding and head: PEFT's folders read and written again, and merged models, tied or
// not, whose logits are those that PEFT computes. Cases of tests/golden/adapters.
#include <gtest/gtest.h>

#include "export/exporter.h"
#include "export/peft_adapter.h"
#include "models/head.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {
namespace {

using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;
using testing::TempFolder;

struct Case {
  const char* adapter;
  const char* base;
};

class LoraTables : public ::testing::TestWithParam<Case> {
 protected:
  static std::string folder() { return golden(std::string("adapters/") + GetParam().adapter); }
  Provenance provenance() const {
    Provenance provenance;
    provenance.base_sha256 = small_.source->content_hash();
    return provenance;
  }

  SmallModel small_{GetParam().base};
  std::unique_ptr<adapters::Adapter> adapter_ = adapters::load_adapter(folder(), *small_.model);
  TempFolder temp_;
};

// Of PEFT's tensors all but its copies of the base.
TEST_P(LoraTables, PeftsFolderComesBackBitForBit) {
  write_peft_adapter(*adapter_, values_of(small_.store), temp_.path() / "a", provenance(),
                     Existing::kRefuse);
  const auto original = io::open_safetensors(folder() + "/adapter_model.safetensors");
  const auto written = io::open_safetensors(temp_.path() / "a/adapter_model.safetensors");
  size_t compared = 0;
  for (const io::TensorInfo& tensor : original->tensors()) {
    if (tensor.name.ends_with(".base_layer.weight"))
      continue;
    ASSERT_NE(written->find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(written->find(tensor.name)->shape, tensor.shape) << tensor.name;
    EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
    ++compared;
  }
  EXPECT_EQ(compared, written->tensors().size());
  const io::Json ours = io::read_json_file((temp_.path() / "a/adapter_config.json").string());
  const io::Json theirs = io::read_json_file(folder() + "/adapter_config.json");
  for (const char* key : {"r", "lora_alpha", "rank_pattern", "use_rslora", "target_modules"})
    EXPECT_EQ(ours.find(key)->dump(), theirs.find(key)->dump()) << key;
}

// The export compares the logits with the adapter's itself.
TEST_P(LoraTables, TheMergedModelHasPeftsLogits) {
  ExportRequest request{
      *small_.model, *small_.source, adapter_.get(), nullptr, provenance(), {}, {}};
  request.options.dtype = DType::kFloat32;
  const auto comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store(*comm, parallel::ZeroStage::k0);
  std::unique_ptr<models::Model> loaded;
  request.load_back = [&](const models::ModelSource& source) -> models::Model& {
    loaded = models::load_model(source, store, {});
    return *loaded;
  };
  OutputFolder output(temp_.path() / "merged", Existing::kRefuse);
  export_hf(request, output);
  output.commit();

  const auto expected = io::open_safetensors(folder() + "/expected.safetensors");
  const auto inputs = io::open_safetensors(golden("lora_qv") + "/expected.safetensors");
  for (const std::string i : {"0", "1"}) {
    const TokenBatch batch = make_batch({read_int32(*inputs, "input_ids_" + i)});
    models::ForwardOptions options;
    options.context.batch = &batch;
    autograd::Tape tape(store, autograd::Recording::kOff);
    const auto hidden = loaded->forward(tape, options);
    const Tensor logits = models::head_logits(loaded->head(), hidden.value());
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
