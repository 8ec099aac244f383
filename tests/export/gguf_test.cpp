// GGUF files that are exported, read back here and compared with the merged weights of --to hf.
#include "io/gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "export/exporter.h"
#include "models/gguf_names.h"
#include "tests/io/temp_folder.h"
#include "tests/support/small_model.h"
#include "tests/support/tiny_gguf.h"
#include "tests/trainer/small_run.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::SmallRun;

/// The tiny model with an adapter trained on it, from a folder or from a GGUF file.
struct Trained {
  SmallRun small;
  std::string path;
  std::unique_ptr<models::ModelSource> source;
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store{*comm, parallel::ZeroStage::k0};
  std::unique_ptr<models::Model> model;
  std::unique_ptr<adapters::Adapter> adapter;
  std::unique_ptr<parallel::ShardedParameterStore> other_store;
  std::unique_ptr<models::Model> read_back;

  explicit Trained(const std::string& model_name, const std::string& method,
                   const std::vector<std::string>& more = {}, const testing::TinyShape& shape = {})
      : small(shape) {
    path = small.path(model_name).string();
    if (model_name.ends_with(".gguf"))
      testing::make_tiny_gguf(path, testing::q4_k_m);
    std::vector<std::string> overrides = {"model.model_name_or_path=" + path,
                                          "quantization={method: " + method + "}",
                                          "training.max_steps=2"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    small.run(small.config("run", overrides));
    source = models::open_model_source(path);
    tokenizer = data::load_tokenizer(path);
    models::LoadOptions load;
    load.quantization.method = method;
    model = models::load_model(*source, store, load);
    adapter = adapters::load_adapter((small.path("run") / "adapter").string(), *model);
  }

  io::Json export_to(const std::string& out, Exporter exporter, const ExportOptions& options) {
    const LoadBack load_back = [this](const models::ModelSource& from) -> models::Model& {
      other_store =
          std::make_unique<parallel::ShardedParameterStore>(*comm, parallel::ZeroStage::k0);
      read_back = models::load_model(from, *other_store, {});
      return *read_back;
    };
    const Provenance provenance = read_provenance(small.path("run") / "adapter").value();
    const ExportRequest request{*model,     *source, adapter.get(), tokenizer.get(),
                                provenance, options, load_back};
    OutputFolder output(small.path(out), Existing::kRefuse);
    io::Json report = exporter(request, output);
    output.commit();
    return report;
  }
};

std::vector<float> read_all(const models::ModelSource& source, const std::string& name) {
  const auto shape = source.shape(name);
  const int64_t length = shape.size() < 2 ? 1 : shape[1];
  std::vector<float> values(static_cast<size_t>(shape[0] * length));
  source.read_rows(name, 0, shape[0], values.data());
  return values;
}

const std::vector<std::string> kNames = {"model.embed_tokens.weight",
                                         "model.norm.weight",
                                         "model.layers.1.self_attn.q_proj.weight",
                                         "model.layers.1.self_attn.k_proj.weight",
                                         "model.layers.0.self_attn.v_proj.weight",
                                         "model.layers.1.mlp.down_proj.weight"};

TEST(GgufExport, HoldsTheMergedWeightsInEveryType) {
  for (const auto& [model, method] : {std::pair("model", "nf4"), std::pair("base.gguf", "keep")}) {
    Trained trained(model, method);
    ExportOptions options;
    options.dtype = DType::kFloat32;
    trained.export_to("hf", &export_hf, options);
    const auto merged = models::open_model_source(trained.small.path("hf").string());
    // Largest error of a value, relative to the largest there is. Q8_0: half a code, and the scale
    // is a half itself.
    for (const auto& [type, share] :
         {std::pair("F32", 0.0), std::pair("F16", 0x1p-11), std::pair("BF16", 0x1p-8),
          std::pair("Q8_0", 0.5 / 127 + 0x1p-11)}) {
      options.gguf_type = type;
      const io::Json report = trained.export_to(std::string("gguf") + type, &export_gguf, options);
      EXPECT_GT(report.find("verified")->find("tensors_compared")->as_integer(), 0);
      const std::string file =
          (trained.small.path(std::string("gguf") + type) / "model.gguf").string();
      const auto read = models::open_model_source(file);
      for (const std::string& name : kNames) {
        const auto expected = read_all(*merged, name), found = read_all(*read, name);
        ASSERT_EQ(found.size(), expected.size());
        float absmax = 0.0f;
        for (const float value : expected)
          absmax = std::max(absmax, std::fabs(value));
        for (size_t i = 0; i < found.size(); ++i)
          ASSERT_LE(std::fabs(found[i] - expected[i]), share * absmax) << type << " " << name;
      }
      const auto tokenizer = data::load_tokenizer(file);
      EXPECT_EQ(tokenizer->encode("say 3 red", {}), trained.tokenizer->encode("say 3 red", {}));
      EXPECT_EQ(tokenizer->eos_id(), trained.tokenizer->eos_id());
    }
  }
}

/// The change of a linear as llama.cpp makes it of the file, in Hugging Face's order of rows.
std::vector<double> change_of_file(const io::GgufFile& file, const std::string& base, int64_t in,
                                   int64_t head_dim) {
  const auto a = testing::read_tensor(file, base + ".lora_a");
  const auto b = testing::read_tensor(file, base + ".lora_b");
  const int64_t rank = std::ssize(a) / in, out = std::ssize(b) / rank;
  const double scale = file.number("adapter.lora.alpha") / static_cast<double>(rank);
  std::vector<double> change;
  for (int64_t row = 0; row < out; ++row) {
    const int64_t w = head_dim == 0 ? 0 : row % head_dim, half = head_dim / 2;
    const int64_t at = head_dim == 0 ? row : row - w + w % half * 2 + w / half;
    for (int64_t c = 0; c < in; ++c) {
      double sum = 0.0;
      for (int64_t r = 0; r < rank; ++r)
        sum += static_cast<double>(b[static_cast<size_t>(at * rank + r)]) *
               a[static_cast<size_t>(r * in + c)];
      change.push_back(scale * sum);
    }
  }
  return change;
}

TEST(GgufLora, HoldsTheChangeOfTheAdapter) {
  for (const std::string options :
       {"lora_rank: 16", "lora_rank: 3, lora_alpha: 5, use_rslora: true",
        "lora_rank: 4, rank_pattern: {k_proj: 2}, alpha_pattern: {up_proj: 3}",
        "lora_rank: 4, lora_alpha: 4, init_lora_weights: pissa"}) {
    SCOPED_TRACE(options);
    Trained trained("model", "nf4", {"adapter={" + options + "}"});
    trained.export_to("lora", &export_gguf_lora, {});
    const auto file = io::open_gguf(trained.small.path("lora") / "adapter.gguf");
    EXPECT_EQ(file->string("general.type"), "adapter");
    EXPECT_EQ(file->string("general.architecture"), "llama");
    EXPECT_EQ(file->string("adapter.type"), "lora");
    EXPECT_EQ(file->tensors().size(), 2 * trained.model->linears().size());
    for (const auto& [path, base, head_dim] :
         {std::tuple("model.layers.1.self_attn.k_proj", "blk.1.attn_k.weight", 16),
          {"model.layers.0.mlp.up_proj", "blk.0.ffn_up.weight", 0}}) {
      const auto linears = trained.model->linears();
      const models::BaseLinear& linear = **std::ranges::find(
          linears, std::string_view(path), [](const auto* each) { return each->path(); });
      const int64_t in = linear.in_features(), out = linear.out_features();
      const Tensor delta = Tensor::zeros({out, in}, DType::kFloat32);
      const UnitLease lease = trained.store.acquire(linear.unit(), Pass::kForward);
      trained.adapter->merge_rows(linear, 0, out, delta);
      const auto found = change_of_file(*file, base, in, head_dim);
      ASSERT_EQ(found.size(), static_cast<size_t>(out * in));
      for (size_t i = 0; i < found.size(); ++i)
        ASSERT_NEAR(found[i], delta.data<const float>()[i], 1e-6) << path << " " << i;
    }
  }
}

TEST(GgufLora, RefusesWhatAdapterFilesDoNotHold) {
  for (const std::string options : {"method: ia3", "lora_rank: 4, use_dora: true"}) {
    Trained trained("model", "nf4", {"adapter={" + options + "}"});
    EXPECT_THROW(trained.export_to("lora", &export_gguf_lora, {}), UnsupportedError) << options;
    EXPECT_FALSE(fs::exists(trained.small.path("lora")));
    EXPECT_NO_THROW(trained.export_to("merged", &export_gguf, {}));
  }
}

// The logits are compared by the export itself.
TEST(GgufExport, EveryMethodMerges) {
  for (const std::string method :
       {"vera, r: 8", "loha", "lokr", "oft, oft_block_size: 8", "boft"}) {
    SCOPED_TRACE(method);
    Trained trained("model", "nf4", {"adapter={method: " + method + "}"});
    EXPECT_NO_THROW(trained.export_to("merged", &export_gguf, {}));
  }
}

TEST(GgufExport, AWindowBecomesTheContext) {
  for (const std::string type : {"mistral", "qwen2"}) {
    testing::TinyShape shape;
    shape.model_type = type;
    Trained trained("model", "none", {}, shape);
    trained.export_to("gguf", &export_gguf, {});
    const auto file = io::open_gguf(trained.small.path("gguf") / "model.gguf");
    const std::string architecture = type == "qwen2" ? "qwen2" : "llama";
    EXPECT_EQ(file->string("general.architecture"), architecture);
    // Only a mistral without use_sliding_window slides.
    EXPECT_EQ(file->integer(architecture + ".context_length"), type == "qwen2" ? 512 : 20);
    EXPECT_EQ(file->find("blk.0.attn_q.bias") != nullptr, type == "qwen2");
  }
}

TEST(GgufExport, GivesEachFamilyTheKeysThatItReads) {
  const auto config_of = [](const std::string& name) {
    return models::open_model_source(testing::golden("families/" + name))->config();
  };
  const auto has = [](const std::vector<io::GgufPair>& pairs, const std::string& key) {
    return std::ranges::any_of(pairs, [&](const io::GgufPair& pair) { return pair.key == key; });
  };
  const auto gpt2 = models::gguf_keys(config_of("gpt2"));
  EXPECT_TRUE(has(gpt2, "gpt2.attention.layer_norm_epsilon"));
  EXPECT_FALSE(has(gpt2, "gpt2.rope.freq_base"));
  const auto linear = models::gguf_keys(config_of("linear_rope"));
  EXPECT_TRUE(has(linear, "llama.rope.scaling.factor"));
  EXPECT_TRUE(has(models::gguf_keys(config_of("qwen2_tied")), "qwen2.rope.freq_base"));
  EXPECT_THROW(models::gguf_keys(config_of("gpt2_scaled")), UnsupportedError);
}

TEST(GgufExport, RefusesARopeScalingThatLlamaCppWouldNotApply) {
  models::ModelConfig config;
  config.model_type = "qwen2";
  EXPECT_EQ(models::gguf_architecture(config), "qwen2");
  config.rope_scaling.type = models::RopeType::kLlama3;
  EXPECT_THROW(models::gguf_architecture(config), UnsupportedError);
  config.model_type = "mistral";
  EXPECT_EQ(models::gguf_architecture(config), "llama");
}

TEST(GgufExport, KeepsBiasesAndRotaryDivisors) {
  for (const std::string name :
       {"families/llama3_rope.gguf", "families/qwen2_linear.gguf", "families/gpt2.gguf"}) {
    io::TempFolder temp;
    testing::SmallModel small(name);
    Provenance provenance;
    provenance.quantization.method = "none";
    ExportOptions options;
    options.gguf_type = "F32";
    parallel::ShardedParameterStore store{*small.comm, parallel::ZeroStage::k0};
    std::unique_ptr<models::Model> loaded;
    const LoadBack load_back = [&](const models::ModelSource& from) -> models::Model& {
      loaded = models::load_model(from, store, {});
      return *loaded;
    };
    const ExportRequest request{*small.model, *small.source, nullptr,  nullptr,
                                provenance,   options,       load_back};
    OutputFolder output(temp.path() / "out", Existing::kRefuse);
    const io::Json report = export_gguf(request, output);
    // Nothing is rounded.
    EXPECT_EQ(report.find("verified")->find("logits_max_difference")->as_number(), 0.0) << name;
    output.commit();
    const auto before = io::open_gguf(testing::golden(name));
    const auto after = io::open_gguf(temp.path() / "out" / "model.gguf");
    ASSERT_EQ(after->tensors().size(), before->tensors().size());
    for (const io::TensorInfo& tensor : before->tensors())
      EXPECT_EQ(testing::read_tensor(*after, tensor.name),
                testing::read_tensor(*before, tensor.name))
          << tensor.name;
  }
}

}  // namespace
}  // namespace shardtune::exporting
