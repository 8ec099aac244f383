// QA-LoRA into the blocks of the file it was trained on: codes and scales stay byte for byte,
// minima take the change, and nothing but their rounding to F16 is lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "core/dtype.h"
#include "export/exporter.h"
#include "export/kept_blocks.h"
#include "io/gguf.h"
#include "io/gguf_types.h"
#include "models/gguf_names.h"
#include "tests/support/tiny_gguf.h"
#include "tests/trainer/small_run.h"

namespace shardtune::exporting {
namespace {

using testing::SmallRun;

constexpr const char* kQaLora =
    "{lora_rank: 2, lora_alpha: 16, use_qalora: true, qalora_group_size: 32}";

/// A file of blocks of one type, an adapter trained on it as it is, and its export.
struct Kept {
  SmallRun small;
  std::string path = small.path("base.gguf").string();
  std::unique_ptr<models::ModelSource> source;
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store{*comm, parallel::ZeroStage::k0};
  parallel::ShardedParameterStore other_store{*comm, parallel::ZeroStage::k0};
  std::unique_ptr<models::Model> model, read_back;
  std::unique_ptr<adapters::Adapter> adapter;

  Kept(const std::string& type, const std::string& options, const std::string& method = "keep") {
    testing::make_tiny_gguf(path, testing::one_type(type));
    small.run(small.config(
        "run", {"model.model_name_or_path=" + path, "quantization={method: " + method + "}",
                "adapter=" + options, "training.learning_rate=0.02", "training.max_steps=3"}));
    source = models::open_model_source(path);
    models::LoadOptions load;
    load.quantization.method = method;
    model = models::load_model(*source, store, load);
    adapter = adapters::load_adapter((small.path("run") / "adapter").string(), *model);
  }

  io::Json run(MergeBase base = MergeBase::kTrained) {
    const LoadBack load_back = [this](const models::ModelSource& from) -> models::Model& {
      read_back = models::load_model(from, other_store, {});
      return *read_back;
    };
    ExportOptions options;
    options.gguf_type = "keep";
    options.merge_base = base;
    const Provenance provenance = read_provenance(small.path("run") / "adapter").value();
    const ExportRequest request{*model,     *source, adapter.get(), nullptr,
                                provenance, options, load_back};
    OutputFolder output(small.path("out"), Existing::kRefuse);
    io::Json report = export_gguf(request, output);
    output.commit();
    return report;
  }
};

float half_at(std::span<const std::byte> bytes, int64_t at) {
  uint16_t half = 0;
  std::memcpy(&half, bytes.data() + at, sizeof(half));
  return half_to_float(half);
}

/// Largest |found - (base + change)| / |new minimum| over the rows of a linear; everything but
/// minima has to be the same.
double largest_error(const Kept& kept, const io::GgufFile& before, const io::GgufFile& after,
                     const models::BaseLinear& linear) {
  const std::string name = linear.path() + ".weight";
  const std::string in_file = models::gguf_tensor_name(kept.model->config(), name);
  const auto old_bytes = before.bytes(*before.find(in_file));
  const auto new_bytes = after.bytes(*after.find(in_file));
  const io::GgufType& layout = *io::find_gguf_type(kept.source->stored_type(name));
  EXPECT_EQ(old_bytes.size(), new_bytes.size());
  double moved = 0.0;
  for (int64_t at = 0; at < std::ssize(old_bytes); at += layout.block_bytes) {
    EXPECT_EQ(half_at(old_bytes, at), half_at(new_bytes, at));
    EXPECT_TRUE(std::ranges::equal(
        old_bytes.subspan(static_cast<size_t>(at + 4), static_cast<size_t>(layout.block_bytes - 4)),
        new_bytes.subspan(static_cast<size_t>(at + 4),
                          static_cast<size_t>(layout.block_bytes - 4))));
    moved = std::max(moved, std::abs(static_cast<double>(half_at(old_bytes, at + 2)) -
                                     half_at(new_bytes, at + 2)));
  }
  EXPECT_GT(moved, 0.0) << name;

  const int64_t out = linear.out_features(), in = linear.in_features();
  const auto merged = models::open_model_source((kept.small.path("out") / "model.gguf").string());
  std::vector<float> base(static_cast<size_t>(out * in)), found(base.size());
  kept.source->read_rows(name, 0, out, base.data());
  merged->read_rows(name, 0, out, found.data());
  std::vector<std::byte> rows(new_bytes.size());
  merged->read_stored_rows(name, 0, out, rows.data());
  const Tensor delta = Tensor::zeros({out, in}, DType::kFloat32);
  const UnitLease lease = kept.model->store().acquire(linear.unit(), Pass::kForward);
  kept.adapter->merge_rows(linear, 0, out, delta);
  double largest = 0.0;
  for (size_t i = 0; i < base.size(); ++i) {
    const auto block = static_cast<int64_t>(i) / layout.block_size;
    const double minimum = half_at(rows, block * layout.block_bytes + 2);
    const double wanted = static_cast<double>(base[i]) + delta.data<const float>()[i];
    largest = std::max(largest, std::abs(found[i] - wanted) / std::max(std::abs(minimum), 1e-3));
  }
  return largest;
}

TEST(QaLoraExport, ChangesTheMinimaOfTheKeptBlocksAlone) {
  for (const std::string type : {"Q4_1", "Q5_1"}) {
    Kept kept(type, kQaLora);
    const io::Json report = kept.run();
    const auto before = io::open_gguf(kept.path);
    const auto after = io::open_gguf(kept.small.path("out") / "model.gguf");
    ASSERT_EQ(after->tensors().size(), before->tensors().size());
    for (const models::BaseLinear* linear : kept.model->linears()) {
      // Half a unit in the last place of the minimum, and four roundings of fp32.
      EXPECT_LE(largest_error(kept, *before, *after, *linear), 0x1p-11 + 0x1p-18) << linear->path();
    }
    for (const io::TensorInfo& tensor : before->tensors()) {
      ASSERT_NE(after->find(tensor.name), nullptr);
      EXPECT_EQ(after->find(tensor.name)->dtype, tensor.dtype);
      const bool is_of_a_linear = tensor.name.find("attn_") != std::string::npos ||
                                  tensor.name.find("ffn_") != std::string::npos;
      if (!is_of_a_linear || tensor.name.ends_with("norm.weight")) {
        EXPECT_TRUE(
            std::ranges::equal(after->bytes(*after->find(tensor.name)), before->bytes(tensor)));
      }
    }
    const double lost = report.find("delta_rounding_error")->as_number();
    EXPECT_GT(lost, 0.0);
    EXPECT_LT(lost, 0.05) << type;
    std::cout << type << ": " << lost << " of the change is lost, logits differ by "
              << report.find("verified")->find("logits_relative_rms")->as_number() << "\n";
  }
}

std::string refusal_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(QaLoraExport, WhatBlocksCannotTakeIsRefused) {
  const auto expect = [](const std::string& type, const std::string& adapter,
                         const std::string& method, const std::string& part) {
    const std::string message = refusal_of([&] { Kept(type, adapter, method).run(); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("Q4_0", kQaLora, "keep", "is Q4_0");
  expect("Q4_1", "{lora_rank: 2}", "keep", "by groups of 1 columns");
  expect("Q4_1", kQaLora, "nf4", "--merge-base original");
  expect("Q4_1", "{lora_rank: 2, use_qalora: true, qalora_group_size: 16}", "keep",
         "expected a multiple of 32");
  expect("Q4_1", "{lora_rank: 3, use_qalora: true, qalora_group_size: 32}", "keep",
         "expected at most 2");
  expect("Q4_1", "{lora_rank: 1, use_qalora: true, qalora_group_size: 48}", "keep",
         "expected a divisor of");
}

TEST(QaLoraExport, GoesIntoTheOriginalBlocksFromAnotherBaseWhereAsked) {
  Kept kept("Q4_1", kQaLora, "nf4");
  EXPECT_NO_THROW(kept.run(MergeBase::kOriginal));
}

TEST(KeptBlocks, ATypeWithoutMinimaIsRefused) {
  std::vector<std::byte> bytes(18);
  const std::vector<float> delta(32, 0.5f);
  EXPECT_FALSE(has_minima("Q4_0"));
  EXPECT_THROW(add_to_minima("Q4_0", delta, bytes), ArgumentError);
  EXPECT_THROW(add_to_minima("Q4_1", delta, bytes), ArgumentError);
}

}  // namespace
}  // namespace shardtune::exporting
