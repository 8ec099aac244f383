// Two LoRA adapters made one, with the logits that PEFT's add_weighted_adapter gives.
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "export/combined_adapter.h"
#include "models/head.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {
namespace {

using adapters::Combination;
using adapters::CombinationType;
using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_tensor;
using testing::SmallModel;
using testing::TempFolder;

class Combined : public ::testing::Test {
 protected:
  io::Json combine(const Combination& combination, const std::string& name) {
    const SmallModel base("tied_gqa");
    OutputFolder output(temp_.path() / name, Existing::kRefuse);
    io::Json report =
        export_combined(folders_, combination, "tied_gqa", base.source->content_hash(), output);
    output.commit();
    return report;
  }
  std::string refusal(const Combination& combination) {
    try {
      combine(combination, "refused");
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::vector<std::string> folders_ = {golden("adapters/combined/first"),
                                       golden("adapters/combined/second")};
  TempFolder temp_;
};

TEST_F(Combined, EveryTypeGivesPeftsLogits) {
  const auto expected = io::open_safetensors(golden("adapters/combined") + "/combined.safetensors");
  const auto inputs = io::open_safetensors(golden("lora_qv") + "/expected.safetensors");
  const std::vector<std::pair<std::string, CombinationType>> types = {
      {"linear", CombinationType::kLinear},
      {"cat", CombinationType::kCat},
      {"svd", CombinationType::kSvd}};
  for (const auto& [name, type] : types) {
    const io::Json report =
        combine({type, {0.7, -0.4}, type == CombinationType::kSvd ? 3 : 0}, name);
    EXPECT_EQ(report.find("rank")->as_integer(), name == "cat" ? 4 : name == "svd" ? 3 : 2);
    SmallModel small("tied_gqa");
    const auto adapter = adapters::load_adapter((temp_.path() / name).string(), *small.model);
    small.store.seal();
    for (const char* i : {"0", "1"}) {
      const auto ids = testing::read_int32(*inputs, std::string("input_ids_") + i);
      const TokenBatch batch = make_batch({ids});
      models::ForwardOptions options = small.forward_options(batch);
      options.hooks = {adapter.get()};
      autograd::Tape tape(small.store, autograd::Recording::kOff);
      const Tensor logits =
          models::head_logits(small.model->head(), small.model->forward(tape, options).value());
      const auto want = read_tensor(*expected, name + ".logits_" + i);
      for (size_t k = 0; k < want.size(); ++k)
        ASSERT_NEAR(logits.data<float>()[k], want[k], tolerance::network(64, 30) * largest(want))
            << name;
    }
  }
}

TEST_F(Combined, WhatCannotBeCombinedIsNamed) {
  EXPECT_NE(refusal({CombinationType::kCat, {1.0}, 0}).find("a weight for each"),
            std::string::npos);
  folders_[1] = golden("adapters/dora");
  EXPECT_NE(refusal({CombinationType::kCat, {1.0, 1.0}, 0}).find("use_dora"), std::string::npos);
  folders_[1] = golden("adapters/ia3");
  EXPECT_NE(refusal({CombinationType::kCat, {1.0, 1.0}, 0}).find("method lora"), std::string::npos);
  folders_[1] = golden("lora_qv");  // rank 4
  EXPECT_NE(refusal({CombinationType::kLinear, {1.0, 1.0}, 0}).find("one rank"), std::string::npos);
  folders_[1] = golden("families/gpt2_lora");
  EXPECT_THROW(adapters::combine_adapters({folders_[1], golden("adapters/trained_head")},
                                          {CombinationType::kSvd, {1.0, 1.0}, 0}, ""),
               UnsupportedError);
}

}  // namespace
}  // namespace shardtune::exporting
