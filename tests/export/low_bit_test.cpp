// Low-bit checkpoints in bitsandbytes' layout: what a merge-aware adapter was trained with comes
// back bit for bit; what is quantised at the export is told; damaged ones are refused.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "export/exporter.h"
#include "export/provenance.h"
#include "io/safetensors.h"
#include "tests/support/small_model.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::golden;
using testing::SmallModel;
using testing::TempFolder;

models::LoadOptions in_format(const quant::QuantizationOptions& quantization) {
  models::LoadOptions options;
  options.quantization = quantization;
  return options;
}

struct Exported {
  SmallModel small;
  std::unique_ptr<adapters::Adapter> adapter;
  ExportRequest request;
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  std::unique_ptr<parallel::ShardedParameterStore> store;
  std::unique_ptr<models::Model> loaded;

  Exported(const quant::QuantizationOptions& quantization, const std::string& adapter_folder,
           std::optional<quant::KeptForm> merge_aware, const std::string& base = "tied_gqa")
      : small(base, in_format(quantization)),
        request{*small.model, *small.source, nullptr, nullptr, {}, {}, {}} {
    if (!adapter_folder.empty()) {
      const auto options = adapters::read_adapter_options(golden(adapter_folder));
      if (merge_aware)
        options->set_merge_aware(*merge_aware);
      adapter = options->attach(*small.model);
      adapter->keep_base(*small.source, [](const models::BaseLinear&) { return true; });
      adapters::read_adapter_values(golden(adapter_folder), *adapter, *small.model);
      request.adapter = adapter.get();
    }
    request.provenance.base_sha256 = small.source->content_hash();
    request.provenance.compute_dtype = "float32";
    request.provenance.quantization = quantization;
    request.provenance.merge_aware = merge_aware;
    request.options.dtype = DType::kFloat32;
    request.options.low_bit = quantization.method;
    request.load_back = [this](const models::ModelSource& source) -> models::Model& {
      store = std::make_unique<parallel::ShardedParameterStore>(*comm, parallel::ZeroStage::k0);
      loaded = models::load_model(source, *store, {});
      return *loaded;
    };
  }

  io::Json export_to(const fs::path& folder) const {
    OutputFolder output(folder, Existing::kRefuse);
    io::Json report = export_hf(request, output);
    output.commit();
    return report;
  }

  /// Whether every linear of the written folder has the values of the loaded base.
  void expect_values_of(const fs::path& folder) const {
    const auto source = models::open_model_source(folder.string());
    for (models::BaseLinear* linear : small.model->linears()) {
      const UnitLease lease = small.model->store().acquire(linear->unit(), Pass::kForward);
      Tensor trained({linear->out_features(), linear->in_features()}, DType::kFloat32);
      linear->dequantize_rows(0, linear->out_features(), trained);
      std::vector<float> read(static_cast<size_t>(trained.numel()));
      const std::string name = linear->path() + ".weight";
      ASSERT_EQ(source->shape(name),
                (std::vector<int64_t>{linear->out_features(), linear->in_features()}));
      source->read_rows(name, 0, linear->out_features(), read.data());
      ASSERT_EQ(std::memcmp(read.data(), trained.data<float>(), read.size() * 4), 0) << name;
      std::vector<float> row(static_cast<size_t>(linear->in_features()));
      source->read_rows(name, 3, 4, row.data());
      ASSERT_EQ(std::memcmp(row.data(), read.data() + 3 * row.size(), row.size() * 4), 0) << name;
    }
  }
};

const quant::QuantizationOptions kFormats[] = {{"nf4", 64, false},
                                               {"nf4", 64, true},
                                               {"nf4", 128, true},
                                               {"fp4", 64, true},
                                               {"int8", 64, false}};

TEST(LowBitExport, HoldsBitForBitWhatWasTrainedWith) {
  for (const quant::QuantizationOptions& format : kFormats) {
    const TempFolder temp;
    const Exported exported(format, "lora_all_linear_rslora", quant::KeptForm::kInt8);
    const io::Json report = exported.export_to(temp.path() / "out");
    exported.expect_values_of(temp.path() / "out");
    EXPECT_TRUE(report.find("codes_as_trained")->as_bool());
    EXPECT_EQ(report.find("dtype")->as_string(), format.method);
    const io::Json& verified = *report.find("verified");
    EXPECT_LE(verified.find("logits_relative_rms")->as_number(), 1e-4) << format.method;
    const io::Json config = io::read_json_file((temp.path() / "out/config.json").string());
    EXPECT_EQ(config.find("quantization_config")->find("quant_method")->as_string(),
              "bitsandbytes");
  }
}

TEST(LowBitExport, TheBaseAloneKeepsItsCodes) {
  const TempFolder temp;
  const Exported exported({"nf4", 64, true}, "", std::nullopt);
  EXPECT_TRUE(exported.export_to(temp.path() / "out").find("codes_as_trained")->as_bool());
  exported.expect_values_of(temp.path() / "out");
}

// Codes stand as [out,in], where a dense file has a Conv1D's weight as [in,out].
TEST(LowBitExport, WritesConv1DModulesAsTransformersDoes) {
  for (const quant::QuantizationOptions& format : kFormats) {
    for (const char* adapter : {"", "families/gpt2_lora"}) {
      const TempFolder temp;
      const bool is_adapted = *adapter != '\0';
      const Exported exported(format, adapter,
                              is_adapted ? std::optional(quant::KeptForm::kInt8) : std::nullopt,
                              "families/gpt2");
      EXPECT_TRUE(exported.export_to(temp.path() / "out").find("codes_as_trained")->as_bool());
      exported.expect_values_of(temp.path() / "out");
    }
  }
}

TEST(LowBitExport, WhatIsQuantisedAtTheExportIsTold) {
  for (const quant::QuantizationOptions& format : kFormats) {
    const TempFolder temp;
    Exported exported(format, "lora_all_linear_rslora", std::nullopt);
    exported.request.options.max_shard_bytes = 20'000;
    const io::Json report = exported.export_to(temp.path() / "out");
    EXPECT_FALSE(report.find("codes_as_trained")->as_bool());
    EXPECT_GT(report.find("delta_rounding_error")->as_number(), 0.001);
    EXPECT_TRUE(fs::exists(temp.path() / "out/model.safetensors.index.json"));
    EXPECT_GT(report.find("verified")->find("logits_relative_rms")->as_number(), 1e-4);
  }
}

std::string refusal(const Exported& exported) {
  const TempFolder temp;
  try {
    exported.export_to(temp.path() / "out");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(LowBitExport, AnotherFormatThanTheTrainedOneIsRefused) {
  Exported exported({"nf4", 64, true}, "lora_all_linear_rslora", quant::KeptForm::kBFloat16);
  exported.request.options.low_bit = "int8";
  EXPECT_NE(refusal(exported).find("--dtype: expected nf4"), std::string::npos);
  exported.request.options.low_bit.clear();  // the same values unpacked
  EXPECT_EQ(refusal(exported), "");
}

/// Reads a small NF4 weight of which one part was changed.
class DamagedLowBit : public ::testing::Test {
 protected:
  DamagedLowBit() {
    const Exported exported({"nf4", 64, true}, "", std::nullopt);
    exported.export_to(temp_.path() / "out");
    const auto file = io::open_safetensors(temp_.path() / "out");
    for (const io::TensorInfo& tensor : file->tensors()) {
      const auto bytes = file->bytes(tensor);
      parts_[tensor.name] = {tensor.dtype, tensor.shape, {bytes.begin(), bytes.end()}};
    }
  }

  struct Part {
    std::string dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::string error_with(const std::map<std::string, Part>& parts) {
    std::vector<io::TensorToWrite> list;
    for (const auto& [name, part] : parts)
      list.push_back(
          {name, part.dtype, part.shape, [bytes = part.bytes](const auto& sink) { sink(bytes); }});
    io::write_safetensors(temp_.path() / "out/model.safetensors", list);
    try {
      models::open_model_source((temp_.path() / "out").string());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  std::string state_changed(const std::string& from, const std::string& to) {
    auto parts = parts_;
    auto& bytes = parts.at(kName + ".quant_state.bitsandbytes__nf4").bytes;
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    EXPECT_NE(text.find(from), std::string::npos) << text;
    text.replace(text.find(from), from.size(), to);
    text.resize(bytes.size(), ' ');
    std::memcpy(bytes.data(), text.data(), text.size());
    return error_with(parts);
  }

  const std::string kName = "model.layers.0.self_attn.q_proj.weight";
  TempFolder temp_;
  std::map<std::string, Part> parts_;
};

TEST_F(DamagedLowBit, PartsThatDoNotFitAreRefused) {
  EXPECT_EQ(error_with(parts_), "");
  for (const char* part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    auto parts = parts_;
    parts.erase(kName + part);
    EXPECT_NE(error_with(parts).find(std::string(part) + ": is missing"), std::string::npos);
  }
  auto parts = parts_;
  Part& absmax = parts.at(kName + ".absmax");
  absmax.bytes.pop_back();
  absmax.shape[0] -= 1;
  EXPECT_NE(error_with(parts).find("do not fit"), std::string::npos);
  parts = parts_;
  parts.at(kName + ".quant_map").bytes[2] = std::byte{9};
  EXPECT_NE(error_with(parts).find("another table"), std::string::npos);
}

TEST_F(DamagedLowBit, StatesThatSayOtherwiseAreRefused) {
  EXPECT_NE(state_changed("\"nf4\"", "\"nf5\"").find("expected nf4 or fp4"), std::string::npos);
  EXPECT_NE(state_changed("\"blocksize\":64", "\"blocksize\":63").find("in blocks of 63"),
            std::string::npos);
  EXPECT_NE(state_changed("\"shape\":[", "\"shape\":[-").find("expected [out, in]"),
            std::string::npos);
  EXPECT_NE(state_changed("\"shape\":[", "\"shape\":[2147483647,2147483647],\"x\":[")
                .find("elements of U8"),
            std::string::npos);
  EXPECT_NE(state_changed("{", "[").find("quant_state"), std::string::npos);
}

}  // namespace
}  // namespace shardtune::exporting
