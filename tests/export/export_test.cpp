// Adapter folders and merged models, written from the golden llama models and read back.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>

#include "export/exporter.h"
#include "export/peft_adapter.h"
#include "export/verify.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "tests/support/small_model.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::golden_llama;
using testing::read_tensor;
using testing::SmallModel;
using testing::TempFolder;

Provenance provenance_of(const SmallModel& small) {
  Provenance provenance;
  provenance.base_model = "tied: \"gqa\"";  // characters that YAML and JSON must quote
  provenance.base_sha256 = small.source->content_hash();
  provenance.compute_dtype = "float32";
  provenance.chat_template = "chatml";
  provenance.trained_steps = 7;
  return provenance;
}

/// A golden model with a golden adapter, and a request to export it.
struct AdapterOnModel {
  SmallModel small;
  std::unique_ptr<adapters::Adapter> adapter;
  ExportRequest request;

  explicit AdapterOnModel(const std::string& adapter_name, models::LoadOptions load = {},
                          const std::string& base = "tied_gqa")
      : small(base, load), request{*small.model, *small.source, nullptr, nullptr, {}, {}, {}} {
    if (!adapter_name.empty())
      adapter = adapters::load_adapter(golden_llama(adapter_name), *small.model);
    request.adapter = adapter.get();
    request.provenance = provenance_of(small);
    request.provenance.quantization = load.quantization;
    request.load_back = [this](const models::ModelSource& source) -> models::Model& {
      comm = parallel::make_single_communicator();
      store = std::make_unique<parallel::ShardedParameterStore>(*comm, parallel::ZeroStage::k0);
      loaded = models::load_model(source, *store, {});
      return *loaded;
    };
  }

  std::unique_ptr<parallel::Communicator> comm;
  std::unique_ptr<parallel::ShardedParameterStore> store;
  std::unique_ptr<models::Model> loaded;
};

io::Json export_to(const AdapterOnModel& setup, const fs::path& folder) {
  OutputFolder output(folder, Existing::kRefuse);
  io::Json report = export_hf(setup.request, output);
  output.commit();
  return report;
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

bool is_empty_folder(const fs::path& folder) { return fs::is_empty(folder); }

TEST(PeftAdapter, ComesBackBitForBit) {
  const TempFolder temp;
  AdapterOnModel setup("lora_all_linear_rslora");
  const fs::path folder = temp.path() / "adapter";
  write_peft_adapter(*setup.adapter, values_of(setup.small.store), folder,
                     provenance_of(setup.small), Existing::kRefuse);
  const auto original =
      io::open_safetensors(golden_llama("lora_all_linear_rslora") + "/adapter_model.safetensors");
  const auto written = io::open_safetensors(folder / "adapter_model.safetensors");
  ASSERT_EQ(written->tensors().size(), original->tensors().size());
  for (const io::TensorInfo& tensor : original->tensors()) {
    ASSERT_NE(written->find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(written->find(tensor.name)->shape, tensor.shape);
    EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
  }
  SmallModel again("tied_gqa");
  EXPECT_NO_THROW(adapters::load_adapter(folder.string(), *again.model));
  EXPECT_TRUE(fs::exists(folder / "README.md"));
}

TEST(PeftAdapter, ConfigHasTheKeysAndValuesOfPeft) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  write_peft_adapter(*setup.adapter, values_of(setup.small.store), temp.path() / "a",
                     provenance_of(setup.small), Existing::kRefuse);
  const io::Json ours = io::read_json_file((temp.path() / "a/adapter_config.json").string());
  const io::Json theirs = io::read_json_file(golden_llama("lora_qv") + "/adapter_config.json");
  for (const auto& [key, value] : theirs.as_object()) {
    ASSERT_NE(ours.find(key), nullptr) << key;
    const bool is_compared = key != "base_model_name_or_path" && key != "target_modules";
    EXPECT_TRUE(!is_compared || ours.find(key)->dump() == value.dump()) << key;
  }
  EXPECT_EQ(ours.as_object().size(), theirs.as_object().size());
}

TEST(PeftAdapter, RefusesNanAndLeavesNothing) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  const ParameterId id = setup.adapter->tensors()[1].id;
  std::vector<float> values(static_cast<size_t>(setup.adapter->tensors()[1].shape.numel()), 0.5f);
  values[3] = NAN;
  setup.small.store.publish(id, std::as_bytes(std::span(values)));
  EXPECT_THROW(write_peft_adapter(*setup.adapter, values_of(setup.small.store), temp.path() / "a",
                                  provenance_of(setup.small), Existing::kRefuse),
               NonFiniteError);
  EXPECT_TRUE(is_empty_folder(temp.path()));
}

TEST(Provenance, ComesBack) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  Provenance provenance = provenance_of(setup.small);
  provenance.quantization = {"nf4", 128, true};
  EXPECT_EQ(to_json(provenance).find("format_version")->as_integer(), 1);
  provenance.merge_aware = quant::KeptForm::kResidual;  // what an older program must not overlook
  EXPECT_EQ(to_json(provenance).find("format_version")->as_integer(), 2);
  testing::write_text(temp.path() / kProvenanceFile, to_json(provenance).dump());
  const auto read = read_provenance(temp.path());
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->base_model, provenance.base_model);
  EXPECT_EQ(read->base_sha256, provenance.base_sha256);
  EXPECT_EQ(read->quantization.method, "nf4");
  EXPECT_EQ(read->quantization.block_size, 128);
  EXPECT_EQ(read->merge_aware, quant::KeptForm::kResidual);
  EXPECT_TRUE(read->quantization.double_quant);
  EXPECT_EQ(read->trained_steps, 7);
  EXPECT_EQ(read->chat_template, "chatml");
  EXPECT_FALSE(read_provenance(temp.path() / "none").has_value());
}

TEST(Provenance, TellsAnotherBaseAndDamage) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  const Provenance provenance = provenance_of(setup.small);
  const std::string message =
      message_of([&] { check_base(provenance, "runs/a", "other.gguf", std::string(64, '0')); });
  for (const char* part : {"runs/a", "gqa", "other.gguf", "0000000000000000"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  for (const char* text : {"[]", "{\"format_version\": 1}", "{", "{\"format_version\": \"1\"}"}) {
    testing::write_text(temp.path() / kProvenanceFile, text);
    EXPECT_THROW(read_provenance(temp.path()), DataError) << text;
  }
  testing::write_text(temp.path() / kProvenanceFile, "{\"format_version\": 3}");
  EXPECT_THROW(read_provenance(temp.path()), UnsupportedError);
  io::Json unknown_form = to_json(provenance);
  unknown_form.set("merge_aware_weights", "fp8");
  testing::write_text(temp.path() / kProvenanceFile, unknown_form.dump());
  EXPECT_THROW(read_provenance(temp.path()), DataError);
}

TEST(OutputFolder, RefusesWhatItWouldDestroy) {
  const TempFolder temp;
  const fs::path foreign = temp.path() / "foreign";
  fs::create_directory(foreign);
  testing::write_text(foreign / "thesis.txt", "x");
  EXPECT_THROW(OutputFolder(foreign, Existing::kRefuse), ConfigError);
  EXPECT_THROW(OutputFolder(foreign, Existing::kReplace), ConfigError);
  EXPECT_THROW(OutputFolder(foreign / "thesis.txt", Existing::kReplace), ConfigError);
  EXPECT_THROW(OutputFolder(foreign / "thesis.txt" / "out", Existing::kRefuse), WriteError);
  EXPECT_EQ(testing::read_text(foreign / "thesis.txt"), "x");
  {
    OutputFolder unfinished(temp.path() / "new", Existing::kRefuse);
    testing::write_text(unfinished.partial() / "half", "x");
  }
  EXPECT_FALSE(fs::exists(temp.path() / "new"));
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(temp.path()))
    ++count;
  EXPECT_EQ(count, 1u);
}

TEST(OutputFolder, ReplacesItsOwnWholeFolder) {
  const TempFolder temp;
  const fs::path target = temp.path() / "out/";
  for (const char* text : {"first", "second"}) {
    OutputFolder output(target, Existing::kReplace);
    testing::write_text(output.partial() / kProvenanceFile, text);
    testing::write_text(output.partial() / text, text);
    output.commit();
  }
  EXPECT_EQ(testing::read_text(target / kProvenanceFile), "second");
  EXPECT_FALSE(fs::exists(target / "first"));
  EXPECT_THROW(OutputFolder(target, Existing::kRefuse), ConfigError);
}

TEST(ExportHf, BaseAloneInFloat32KeepsEveryBit) {
  const TempFolder temp;
  AdapterOnModel setup("");
  setup.request.options.dtype = DType::kFloat32;
  export_to(setup, temp.path() / "out");
  const auto original = io::open_safetensors(golden_llama("tied_gqa"));
  const auto written = io::open_safetensors(temp.path() / "out");
  ASSERT_EQ(written->tensors().size(), original->tensors().size());
  for (const io::TensorInfo& tensor : original->tensors())
    EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
}

// The logits of the merged model are compared by the export itself.
TEST(ExportHf, AFamilyKeepsItsBiasesAndItsConfiguration) {
  const TempFolder temp;
  AdapterOnModel setup("families/qwen2_lora", {}, "families/qwen2_tied");
  setup.request.options.dtype = DType::kFloat32;
  export_to(setup, temp.path() / "out");
  const auto original = io::open_safetensors(testing::golden("families/qwen2_tied"));
  const auto written = io::open_safetensors(temp.path() / "out");
  ASSERT_EQ(written->tensors().size(), original->tensors().size());
  int num_biases = 0;
  for (const io::TensorInfo& tensor : original->tensors()) {
    const bool is_bias = tensor.name.ends_with(".bias");
    num_biases += is_bias ? 1 : 0;
    if (is_bias || tensor.name.ends_with("o_proj.weight")) {
      EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
    }
  }
  EXPECT_EQ(num_biases, 6);
  const io::Json config = io::read_json_file(temp.path() / "out" / "config.json");
  EXPECT_EQ(config.find("model_type")->as_string(), "qwen2");
  EXPECT_EQ(config.find("architectures")->as_array()[0].as_string(), "Qwen2ForCausalLM");
  EXPECT_EQ(config.find("sliding_window")->as_integer(), 5);
}

// Conv1D weights are written as they were read, [in,out]; the export itself compares the logits.
TEST(ExportHf, Conv1dWeightsKeepTheirLayout) {
  const TempFolder temp;
  AdapterOnModel base("", {}, "families/gpt2");
  base.request.options.dtype = DType::kFloat32;
  export_to(base, temp.path() / "base");
  const auto original = io::open_safetensors(testing::golden("families/gpt2"));
  const auto written = io::open_safetensors(temp.path() / "base");
  ASSERT_EQ(written->tensors().size(), original->tensors().size());
  for (const io::TensorInfo& tensor : original->tensors()) {
    EXPECT_EQ(written->find(tensor.name)->shape, tensor.shape);
    EXPECT_EQ(read_tensor(*written, tensor.name), read_tensor(*original, tensor.name));
  }
  AdapterOnModel adapted("families/gpt2_lora", {}, "families/gpt2");
  export_to(adapted, temp.path() / "merged");
  EXPECT_TRUE(adapted.adapter->peft_config("gpt2").find("fan_in_fan_out")->as_bool());
}

// W' = bf16(W + scale * B A), with the product in fp32: against the same sum in fp64. The product
// of rank 4 has an error of at most 5 roundings of fp32, far below half a step of bf16 except where
// the sum lies at a rounding boundary; so one bf16 step is allowed.
TEST(ExportHf, MergesTheDeltaAndRoundsOnce) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  const io::Json report = export_to(setup, temp.path() / "out");
  const auto base = io::open_safetensors(golden_llama("tied_gqa"));
  const auto lora = io::open_safetensors(golden_llama("lora_qv") + "/adapter_model.safetensors");
  const auto written = io::open_safetensors(temp.path() / "out");
  const std::string path = "model.layers.1.self_attn.q_proj";
  const auto w = read_tensor(*base, path + ".weight");
  const auto a = read_tensor(*lora, "base_model.model." + path + ".lora_A.weight");  // [4, 32]
  const auto b = read_tensor(*lora, "base_model.model." + path + ".lora_B.weight");  // [32, 4]
  const auto merged = read_tensor(*written, path + ".weight");
  int num_exact = 0;
  for (size_t row = 0; row < 32; ++row) {
    for (size_t column = 0; column < 32; ++column) {
      double sum = w[row * 32 + column];
      for (size_t r = 0; r < 4; ++r)
        sum += 2.0 * b[row * 4 + r] * a[r * 32 + column];
      const float found = merged[row * 32 + column];
      EXPECT_NEAR(found, sum, std::abs(sum) * 0x1p-8 + 1e-9);
      num_exact += found == static_cast<float>(BFloat16(static_cast<float>(sum))) ? 1 : 0;
    }
  }
  EXPECT_GE(num_exact, 1020);
  EXPECT_EQ(read_tensor(*written, "model.layers.0.self_attn.k_proj.weight")[5],
            static_cast<float>(
                BFloat16(read_tensor(*base, "model.layers.0.self_attn.k_proj.weight")[5])));
  EXPECT_EQ(report.find("merged_tensors")->as_integer(), 4);
  const double kept = report.find("delta_rounding_error")->as_number();
  EXPECT_GT(kept, 0.0);
  EXPECT_LT(kept, 0.1);
}

TEST(ExportHf, MergesOntoTheDequantisedBase) {
  const TempFolder temp;
  models::LoadOptions load;
  load.quantization = {"nf4", 64, true};
  AdapterOnModel setup("lora_all_linear_rslora", load);
  setup.request.options.dtype = DType::kFloat32;
  export_to(setup, temp.path() / "out");
  const auto written = io::open_safetensors(temp.path() / "out");
  for (models::BaseLinear* linear : setup.small.model->linears()) {
    const UnitLease lease = setup.small.store.acquire(linear->unit(), Pass::kForward);
    const Shape shape{linear->out_features(), linear->in_features()};
    const Tensor expected(shape, DType::kFloat32);
    linear->dequantize_rows(0, shape[0], expected);
    setup.adapter->merge_rows(*linear, 0, shape[0], expected);
    const auto found = read_tensor(*written, linear->path() + ".weight");
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_EQ(found[i], expected.data<float>()[i]) << linear->path();
  }
  setup.request.options.merge_base = MergeBase::kOriginal;
  export_to(setup, temp.path() / "original");
  const auto original = io::open_safetensors(temp.path() / "original");
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_NE(read_tensor(*original, name), read_tensor(*written, name));
}

TEST(ExportHf, WritesNumberedFilesAboveTheLimit) {
  const TempFolder temp;
  AdapterOnModel setup("lora_qv");
  setup.request.options.max_shard_bytes = 9000;
  export_to(setup, temp.path() / "out");
  EXPECT_TRUE(fs::exists(temp.path() / "out/model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(temp.path() / "out/model.safetensors"));
  const io::Json index =
      io::read_json_file((temp.path() / "out/model.safetensors.index.json").string());
  EXPECT_GT(index.find("weight_map")->as_object().size(), 3u);
  const auto source = models::open_model_source((temp.path() / "out").string());
  EXPECT_TRUE(source->has("model.layers.1.mlp.down_proj.weight"));
}

TEST(ExportHf, ConfigSaysTheDtypeAndKeepsTheRest) {
  const TempFolder temp;
  AdapterOnModel setup("");
  export_to(setup, temp.path() / "out");
  const io::Json config = io::read_json_file((temp.path() / "out/config.json").string());
  EXPECT_EQ(config.find("dtype")->as_string(), "bfloat16");
  EXPECT_EQ(config.find("initializer_range")->as_number(), 0.02);
  EXPECT_EQ(config.find("torch_dtype"), nullptr);
}

TEST(Verify, FindsAChangedByte) {
  const TempFolder temp;
  AdapterOnModel setup("");
  export_to(setup, temp.path() / "out");
  std::map<std::string, WrittenTensor> written;
  {
    const auto source = io::open_safetensors(temp.path() / "out");
    for (const io::TensorInfo& tensor : source->tensors())
      written[tensor.name] = {io::crc32c(source->bytes(tensor)), tensor.num_bytes};
  }
  EXPECT_NO_THROW(compare_tensors(*io::open_safetensors(temp.path() / "out"), "out", written));
  std::string bytes = testing::read_text(temp.path() / "out/model.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  testing::write_text(temp.path() / "out/model.safetensors", bytes);
  EXPECT_THROW(compare_tensors(*io::open_safetensors(temp.path() / "out"), "out", written),
               CorruptBlockError);
}

// Merged weights without the adapter's change must not pass as the trained model.
TEST(Verify, FindsAMergeThatLostTheAdapter) {
  const TempFolder temp;
  AdapterOnModel base("");
  export_to(base, temp.path() / "base");
  AdapterOnModel trained("lora_all_linear_rslora");
  const double rounding = 0x1p-10;  // of bf16
  EXPECT_THROW(compare_logits(trained.request, temp.path() / "base", rounding), CorruptBlockError);
  EXPECT_NO_THROW(compare_logits(base.request, temp.path() / "base", rounding));
}

}  // namespace
}  // namespace shardtune::exporting
