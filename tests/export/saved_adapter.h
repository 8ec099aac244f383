// An adapter folder of tests/golden/adapters beside its base, written again and merged.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "export/exporter.h"
#include "export/peft_adapter.h"
#include "tests/support/small_model.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::exporting {

struct SavedAdapter {
  SavedAdapter(const std::string& name, const std::string& base,
               const models::LoadOptions& options = {})
      : folder(testing::golden("adapters/" + name)), small(base, options) {
    provenance.base_model = base;
    provenance.base_sha256 = small.source->content_hash();
    adapter = adapters::load_adapter(folder, *small.model);
  }

  /// Writes the adapter to temp/a and compares the tensors of FILE with those of the folder, but
  /// those that `is_left_out` names.
  void expect_comes_back(
      const std::string& file, const std::function<bool(const std::string&)>& is_left_out =
                                   [](const auto&) { return false; }) {
    write_peft_adapter(*adapter, values_of(small.store), temp.path() / "a", provenance,
                       Existing::kRefuse);
    const auto original = io::open_safetensors(folder + "/" + file);
    const auto written = io::open_safetensors(temp.path() / "a" / file);
    size_t compared = 0;
    for (const io::TensorInfo& tensor : original->tensors()) {
      if (is_left_out(tensor.name))
        continue;
      ASSERT_NE(written->find(tensor.name), nullptr) << tensor.name;
      EXPECT_EQ(written->find(tensor.name)->shape, tensor.shape) << tensor.name;
      EXPECT_EQ(testing::read_tensor(*written, tensor.name),
                testing::read_tensor(*original, tensor.name));
      ++compared;
    }
    EXPECT_EQ(compared, written->tensors().size());
  }

  /// Exports the merged model in f32 to temp/merged, which compares its logits with the adapter's,
  /// and keeps it in `merged`.
  void merge() {
    ExportRequest request{*small.model, *small.source, adapter.get(), nullptr, provenance, {}, {}};
    request.options.dtype = DType::kFloat32;
    request.load_back = [&](const models::ModelSource& source) -> models::Model& {
      merged = models::load_model(source, merged_store, {});
      return *merged;
    };
    OutputFolder output(temp.path() / "merged", Existing::kRefuse);
    export_hf(request, output);
    output.commit();
  }

  std::string folder;
  testing::SmallModel small;
  Provenance provenance;
  std::unique_ptr<adapters::Adapter> adapter;
  testing::TempFolder temp;
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore merged_store{*comm, parallel::ZeroStage::k0};
  std::unique_ptr<models::Model> merged;
};

}  // namespace shardtune::exporting
