#include <filesystem>
#include <map>
#include <vector>

#include "adapters/adapter.h"
#include "io/safetensors.h"

namespace shardtune::adapters {

namespace {

namespace fs = std::filesystem;
// Every tensor of the file has its place and shape, and every place its tensor.
void check_tensors(const Adapter& adapter, const io::TensorSource& file, const std::string& where) {
  for (const AdapterTensor& tensor : adapter.tensors()) {
    const io::TensorInfo* found = file.find(tensor.prefix + tensor.name);
    if (found == nullptr) {
      throw DataError(where + ": " + tensor.prefix + tensor.name +
                      " is missing. The adapter is incomplete or of another model.");
    }
    const Shape shape{std::span<const int64_t>(found->shape)};
    if (!(shape == tensor.shape)) {
      throw DataError(where + ": " + found->name + ": expected " + tensor.shape.to_string() +
                      ", found " + shape.to_string() + ". The adapter is of another model.");
    }
  }
  std::map<std::string, bool> known;
  for (const AdapterTensor& tensor : adapter.tensors())
    known.emplace(tensor.prefix + tensor.name, true);
  for (const io::TensorInfo& tensor : file.tensors()) {
    if (!known.contains(tensor.name)) {
      throw DataError(where + ": " + tensor.name +
                      " has no place in this model with this configuration. The adapter is of "
                      "another model, or uses an option that is not supported yet.");
    }
  }
}

}  // namespace

std::unique_ptr<Adapter> load_adapter(const std::string& folder, models::Model& model) {
  const std::string config_path = (fs::path(folder) / "adapter_config.json").string();
  const fs::path tensors_path = fs::path(folder) / "adapter_model.safetensors";
  std::error_code error;
  if (fs::exists(fs::path(folder) / "adapter_model.bin", error) &&
      !fs::exists(tensors_path, error)) {
    throw UnsupportedError(folder +
                           ": adapter_model.bin is a pickle, which can run code when "
                           "read. Save it again with PEFT's safe_serialization=True.");
  }
  const io::Json config = io::read_json_file(config_path);
  auto adapter = adapter_options_from_peft(config, config_path)->attach(model);
  const auto file = io::open_safetensors(tensors_path);
  check_tensors(*adapter, *file, tensors_path.string());
  for (const AdapterTensor& tensor : adapter->tensors()) {
    const io::TensorInfo& found = *file->find(tensor.prefix + tensor.name);
    if (tensor.constant != nullptr) {
      file->read_float32(found, 0, tensor.shape.numel(), tensor.constant->data<float>());
      continue;
    }
    std::vector<float> values;
    if (model.store().is_publisher(tensor.id)) {
      values.resize(static_cast<size_t>(tensor.shape.numel()));
      file->read_float32(found, 0, tensor.shape.numel(), values.data());
    }
    model.store().publish(tensor.id, std::as_bytes(std::span(values)));
  }
  adapter->finish_loading();
  return adapter;
}

}  // namespace shardtune::adapters
