// Bottleneck adapters: AdapterHub's folders read and written again with the same bits; merging and
// pickles are refused with the reason.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "export/exporter.h"
#include "export/merged_tensors.h"
#include "export/peft_adapter.h"
#include "io/file.h"
#include "tests/export/saved_adapter.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;
using testing::golden;
using testing::read_tensor;
using testing::SmallModel;
using testing::TempFolder;

class Bottleneck : public ::testing::TestWithParam<const char*> {
 protected:
  static std::string base() {
    return std::string(GetParam()).starts_with("gpt2") ? "families/gpt2" : "tied_gqa";
  }

  SavedAdapter saved_{GetParam(), base()};
};

TEST_P(Bottleneck, AdapterHubsFolderComesBackBitForBit) {
  saved_.expect_comes_back("adapter.safetensors");
  EXPECT_FALSE(fs::exists(saved_.temp.path() / "a/adapter_model.safetensors"));
  const auto config = [](const fs::path& path) {
    return io::read_json_file((path / "adapter_config.json").string()).dump(2);
  };
  EXPECT_EQ(config(saved_.temp.path() / "a"), config(saved_.folder));
  const std::string card =
      io::read_text_file((saved_.temp.path() / "a/README.md").string(), 1 << 16);
  EXPECT_NE(card.find("library_name: adapters"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Cases, Bottleneck,
                         ::testing::Values("bottleneck_houlsby", "bottleneck_parallel",
                                           "bottleneck_norms", "bottleneck_plus",
                                           "gpt2_bottleneck_pfeiffer"),
                         [](const auto& info) { return std::string(info.param); });

template <typename Failure>
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Failure& error) {
    return error.what();
  }
  return "";
}

TEST(BottleneckExport, MergingIsRefusedWithTheReason) {
  SmallModel small("tied_gqa");
  const auto adapter = adapters::load_adapter(golden("adapters/bottleneck_houlsby"), *small.model);
  const Provenance provenance;
  const ExportOptions options;
  const LoadBack load_back;
  const ExportRequest request{*small.model, *small.source, adapter.get(), nullptr,
                              provenance,   options,       load_back};
  const std::string message =
      message_of<UnsupportedError>([&] { const MergedTensors tensors(request); });
  EXPECT_NE(message.find("'bottleneck' cannot be merged into weights: it has a non-linearity"),
            std::string::npos)
      << message;
}

TEST(BottleneckExport, APickleIsRefusedWithTheWayOut) {
  SmallModel small("tied_gqa");
  const TempFolder temp;
  fs::copy(golden("adapters/bottleneck_houlsby") + "/adapter_config.json",
           temp.path() / "adapter_config.json");
  io::write_file_durably(temp.path() / "pytorch_adapter.bin", "PK");
  const std::string message = message_of<UnsupportedError>(
      [&] { adapters::load_adapter(temp.path().string(), *small.model); });
  EXPECT_NE(message.find("pytorch_adapter.bin is a pickle"), std::string::npos) << message;
  EXPECT_NE(message.find("use_safetensors=True"), std::string::npos) << message;
}

}  // namespace
}  // namespace shardtune::exporting
