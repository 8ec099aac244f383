#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

#include "adapters/adapter.h"
#include "io/safetensors.h"
#include "quant/rounding.h"

namespace shardtune::adapters {

namespace {

namespace fs = std::filesystem;
// Every tensor of the file has its place and shape, and every place its tensor.
void check_tensors(const Adapter& adapter, const std::vector<SavedTensor>& saved,
                   const io::TensorSource& file, const std::string& where) {
  std::set<std::string> known, second;  // names, of a tied tensor one may be missing
  for (const AdapterTensor& tensor : adapter.tensors()) {
    if (tensor.in_file && !tensor.in_file->also.empty())
      second.insert(tensor.prefix + tensor.in_file->also);
  }
  for (const SavedTensor& tensor : saved) {
    const std::string name = tensor.prefix + tensor.name;
    known.insert(name);
    const io::TensorInfo* found = file.find(name);
    if (found == nullptr && second.contains(name))
      continue;
    if (found == nullptr) {
      throw DataError(where + ": " + name +
                      " is missing. The adapter is incomplete or of another model.");
    }
    const Shape shape{std::span<const int64_t>(found->shape)};
    if (!(shape == tensor.shape)) {
      throw DataError(where + ": " + found->name + ": expected " + tensor.shape.to_string() +
                      ", found " + shape.to_string() + ". The adapter is of another model.");
    }
  }
  for (const io::TensorInfo& tensor : file.tensors()) {
    if (!known.contains(tensor.name) && !adapter.is_copy_of_base(tensor, file)) {
      throw DataError(where + ": " + tensor.name +
                      " has no place in this model with this configuration. The adapter is of "
                      "another model, or uses an option that is not supported yet.");
    }
  }
}

// A tensor's values, or its part of them, as the store holds it.
std::vector<float> read_values(const AdapterTensor& tensor, const io::TensorSource& file) {
  const io::TensorInfo& found = *file.find(tensor.prefix + tensor.name);
  const int64_t numel = tensor.shape.numel();
  const bool is_rows = tensor.in_file && tensor.shape.ndim() == 2;
  const int64_t begin = is_rows ? tensor.in_file->first_row * tensor.shape[1] : 0;
  std::vector<float> values(static_cast<size_t>(numel));
  file.read_float32(found, begin, begin + numel, values.data());
  if (const auto bad = quant::first_non_finite(values, 0))
    throw NonFiniteError(file.describe(found) + ": expected finite values, found " +
                         std::to_string(values[static_cast<size_t>(*bad)]) + " at " +
                         std::to_string(*bad) +
                         ". The adapter is damaged or its training diverged; use another one.");
  if (!is_rows || !tensor.in_file->is_transposed)
    return values;
  std::vector<float> turned(values.size());
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j)
      turned[static_cast<size_t>(i * columns + j)] = values[static_cast<size_t>(j * rows + i)];
  }
  return turned;
}

// Collective: every rank publishes every source, from values that its publisher reads.
void publish_parts(const SavedTensor& tensor, const io::TensorSource& file, ParameterStore& store) {
  std::vector<float> whole;
  for (size_t i = 0; i < tensor.sources.size(); ++i) {
    std::vector<float> values;
    if (store.is_publisher(tensor.sources[i])) {
      if (whole.empty()) {
        whole.resize(static_cast<size_t>(tensor.shape.numel()));
        file.read_float32(*file.find(tensor.prefix + tensor.name), 0, tensor.shape.numel(),
                          whole.data());
      }
      values.resize(static_cast<size_t>(store.spec(tensor.sources[i]).shape.numel()));
      tensor.decompose(whole, i, values);
    }
    store.publish(tensor.sources[i], std::as_bytes(std::span(values)));
  }
}

std::string config_path_of(const std::string& folder) {
  return (fs::path(folder) / "adapter_config.json").string();
}

}  // namespace

std::unique_ptr<AdapterOptions> read_adapter_options(const std::string& folder) {
  const std::string path = config_path_of(folder);
  std::error_code error;
  if (!fs::exists(path, error)) {
    const bool is_folder = fs::is_directory(folder, error);
    const std::string inner = (fs::path(folder) / "adapter").string();
    std::string found = is_folder ? "a folder without it" : "nothing";
    if (!is_folder && fs::exists(folder, error))
      found = "a file";
    throw MissingInputError(folder + ": expected an adapter folder, which holds " +
                            "adapter_config.json, found " + found + ". " +
                            (fs::exists(config_path_of(inner), error)
                                 ? "Did you mean " + inner + "?"
                                 : "Give for example runs/NAME/adapter."));
  }
  return adapter_options_from_peft(io::read_json_file(path), path);
}

void read_adapter_values(const std::string& folder, Adapter& adapter, models::Model& model) {
  const AdapterFolder names = adapter.folder();
  const fs::path tensors_path = fs::path(folder) / names.weights_file;
  std::error_code error;
  if (fs::exists(fs::path(folder) / names.pickle_file, error) && !fs::exists(tensors_path, error)) {
    throw UnsupportedError(folder + ": " + names.pickle_file +
                           " is a pickle, which can run code when read. Save it again " +
                           names.save_again + ".");
  }
  const auto file = io::open_safetensors(tensors_path);
  const std::vector<SavedTensor> saved = adapter.saved_tensors();
  check_tensors(adapter, saved, *file, tensors_path.string());
  std::set<ParameterId> published;
  for (const SavedTensor& tensor : saved) {
    if (!tensor.decompose)
      continue;
    publish_parts(tensor, *file, model.store());
    published.insert(tensor.sources.begin(), tensor.sources.end());
  }
  for (const AdapterTensor& tensor : adapter.tensors()) {
    if (tensor.constant != nullptr) {
      std::ranges::copy(read_values(tensor, *file), tensor.constant->data<float>());
      continue;
    }
    if (published.contains(tensor.id))
      continue;
    std::vector<float> values;
    if (model.store().is_publisher(tensor.id))
      values = read_values(tensor, *file);
    model.store().publish(tensor.id, std::as_bytes(std::span(values)));
  }
  adapter.finish_loading();
}

std::unique_ptr<Adapter> load_adapter(const std::string& folder, models::Model& model) {
  auto adapter = read_adapter_options(folder)->attach(model);
  read_adapter_values(folder, *adapter, model);
  return adapter;
}

}  // namespace shardtune::adapters
