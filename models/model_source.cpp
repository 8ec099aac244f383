#include "models/model_source.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/parallel_for.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "models/family.h"
#include "models/gguf_names.h"
#include "models/low_bit_tensors.h"

namespace shardtune::models {

namespace {

namespace fs = std::filesystem;

// Decoded by one thread at least, where a tensor is read on several.
constexpr int64_t kValuesPerTask = 1 << 14;

// Row count and row length of a tensor: a vector's rows are its elements.
struct Rows {
  int64_t count;
  int64_t length;
};

Rows rows_of(const std::vector<int64_t>& shape) {
  Rows rows{1, 1};
  if (!shape.empty())
    rows.count = shape[0];
  for (size_t i = 1; i < shape.size(); ++i)
    rows.length *= shape[i];
  return rows;
}

std::string hash_tensors(const io::TensorSource& tensors) {
  io::Sha256 hash;
  std::map<std::string, const io::TensorInfo*> by_name;
  for (const io::TensorInfo& tensor : tensors.tensors())
    by_name.emplace(tensor.name, &tensor);
  for (const auto& [name, tensor] : by_name) {
    std::string head = name + '\0' + tensor->dtype;
    for (const int64_t extent : tensor->shape)
      head += ' ' + std::to_string(extent);
    hash.update(io::as_bytes(head + '\n'));
    hash.update(tensors.bytes(*tensor));
    tensors.drop(*tensor);
  }
  return hash.hex_digest();
}

// Shared by both formats: lookup of a file's tensor by Hugging Face name.
class TensorsSource : public ModelSource {
 public:
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  bool has(const std::string& name) const override { return locate(name) != nullptr; }
  std::vector<int64_t> shape(const std::string& name) const override { return need(name).shape; }
  int64_t file_bytes(const std::string& name) const override { return need(name).num_bytes; }
  std::string stored_type(const std::string& name) const override { return need(name).dtype; }
  void check_readable(const std::string& name) const override {
    const io::TensorInfo& tensor = need(name);
    const char first = tensor.dtype.empty() ? 'I' : tensor.dtype[0];
    const bool is_integer = (first == 'I' || first == 'U') && !tensor.dtype.starts_with("IQ");
    if (is_integer || tensor.dtype == "BOOL")
      throw DataError(path_ + ": " + name + ": expected floating-point weights, found " +
                      tensor.dtype + ". Fetch the file again, or save it in bfloat16 or float32.");
    tensors().check_readable(tensor);
  }
  void read_stored_rows(const std::string& name, int64_t begin, int64_t end,
                        std::byte* out) const override {
    const io::TensorInfo& tensor = need(name);
    const auto all = tensors().bytes(tensor);
    const int64_t num_rows = rows_of(tensor.shape).count;
    SHARDTUNE_ASSERT(begin >= 0 && begin <= end && end <= num_rows);
    const auto row_bytes = static_cast<int64_t>(all.size()) / num_rows;
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(out + (row - begin) * row_bytes, all.data() + file_row(name, row) * row_bytes,
                  static_cast<size_t>(row_bytes));
  }
  void read_rows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    const io::TensorInfo& tensor = need(name);
    const Rows rows = rows_of(tensor.shape);
    SHARDTUNE_ASSERT(begin >= 0 && begin <= end && end <= rows.count);
    // Rows of a matrix hold whole blocks of their format; a vector is read at once.
    const int64_t grain = rows.length == 1 ? end - begin : kValuesPerTask / rows.length;
    parallel_for(end - begin, grain, [&](int64_t first, int64_t last) {
      tensors().read_float32(tensor, (begin + first) * rows.length, (begin + last) * rows.length,
                             out + first * rows.length);
    });
  }
  void drop(const std::string& name) const noexcept override {
    if (const io::TensorInfo* tensor = locate(name))
      tensors().drop(*tensor);
  }
  std::string content_hash() const override { return hash_tensors(tensors()); }

 protected:
  virtual const io::TensorSource& tensors() const = 0;
  virtual const io::TensorInfo* locate(const std::string& name) const = 0;
  /// Where the file has a row.
  virtual int64_t file_row(const std::string&, int64_t row) const { return row; }

  const io::TensorInfo& need(const std::string& name) const {
    if (const io::TensorInfo* tensor = locate(name))
      return *tensor;
    throw DataError(
        path_ + ": tensor " + name +
        " is missing. The files of the model do not belong together or are incomplete.");
  }

  std::string path_;
  ModelConfig config_;
};

class FolderSource : public TensorsSource {
 public:
  explicit FolderSource(const std::string& folder) {
    path_ = folder;
    const std::string config_path = (fs::path(folder) / "config.json").string();
    config_ = parse_model_config(io::read_json_file(config_path), config_path);
    prefix_ = families().at(config_.model_type).prefix;
    tensors_ = io::open_safetensors(folder);
    low_bit_ = std::make_unique<LowBitTensors>(*tensors_);
  }
  std::string folder() const override { return path_; }

  std::vector<int64_t> shape(const std::string& name) const override {
    if (const auto* weight = low_bit(name))
      return weight->shape;
    std::vector<int64_t> found = TensorsSource::shape(name);
    if (found.size() == 2 && is_conv1d(config_, name))
      std::swap(found[0], found[1]);
    return found;
  }

  std::string stored_type(const std::string& name) const override {
    const auto* weight = low_bit(name);
    return weight == nullptr ? TensorsSource::stored_type(name) : "bitsandbytes " + weight->format;
  }
  void check_readable(const std::string& name) const override {
    if (low_bit(name) == nullptr)
      TensorsSource::check_readable(name);
  }

  // Row `r` of a Conv1D's [out,in] is a column of the file's [in,out].
  void read_rows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    if (const auto* weight = low_bit(name))
      return low_bit_->read_rows(*weight, begin, end, out);
    if (!is_conv1d(config_, name))
      return TensorsSource::read_rows(name, begin, end, out);
    const io::TensorInfo& tensor = need(name);
    SHARDTUNE_ASSERT(tensor.shape.size() == 2 && begin >= 0 && begin <= end &&
                     end <= tensor.shape[1]);
    const int64_t in = tensor.shape[0];
    std::vector<float> part(static_cast<size_t>(end - begin));
    for (int64_t i = 0; i < in; ++i) {
      tensors_->read_float32(tensor, i * tensor.shape[1] + begin, i * tensor.shape[1] + end,
                             part.data());
      for (int64_t row = begin; row < end; ++row)
        out[(row - begin) * in + i] = part[static_cast<size_t>(row - begin)];
    }
  }

  void read_stored_rows(const std::string& name, int64_t begin, int64_t end,
                        std::byte* out) const override {
    if (!is_conv1d(config_, name))
      return TensorsSource::read_stored_rows(name, begin, end, out);
    // The types of safetensors have no blocks: every element moves by itself.
    const io::TensorInfo& tensor = need(name);
    SHARDTUNE_ASSERT(tensor.shape.size() == 2 && begin >= 0 && begin <= end &&
                     end <= tensor.shape[1]);
    const auto all = tensors_->bytes(tensor);
    const int64_t in = tensor.shape[0], columns = tensor.shape[1];
    const int64_t size = std::ssize(all) / (in * columns);
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t row = begin; row < end; ++row)
        std::memcpy(out + ((row - begin) * in + i) * size, all.data() + (i * columns + row) * size,
                    static_cast<size_t>(size));
    }
  }

 protected:
  const io::TensorSource& tensors() const override { return *tensors_; }
  const io::TensorInfo* locate(const std::string& name) const override {
    if (const io::TensorInfo* tensor = tensors_->find(name))
      return tensor;
    // A bare LlamaModel is saved without the "model." prefix.
    if (name.starts_with(prefix_))
      return tensors_->find(name.substr(prefix_.size()));
    return nullptr;
  }

 private:
  const LowBitTensors::Weight* low_bit(const std::string& name) const {
    const io::TensorInfo* tensor = locate(name);
    return tensor == nullptr ? nullptr : low_bit_->find(tensor->name);
  }

  std::unique_ptr<io::TensorSource> tensors_;
  std::unique_ptr<LowBitTensors> low_bit_;
  std::string prefix_;
};

class GgufSource : public TensorsSource {
 public:
  explicit GgufSource(const std::string& path) : file_(io::open_gguf(path)) {
    path_ = path;
    config_ = parse_gguf_config(*file_);
  }
  std::string folder() const override { return ""; }

  void read_rows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    if (!has_interleaved_rows(config_, name)) {
      TensorsSource::read_rows(name, begin, end, out);
      return;
    }
    const io::TensorInfo& tensor = need(name);
    const int64_t length = rows_of(tensor.shape).length;
    SHARDTUNE_ASSERT(begin >= 0 && end <= tensor.shape[0]);
    if (length == 1) {  // a bias: elements cannot be read one at a time from a block format
      std::vector<float> all(static_cast<size_t>(tensor.shape[0]));
      file_->read_float32(tensor, 0, tensor.shape[0], all.data());
      for (int64_t row = begin; row < end; ++row)
        out[row - begin] = all[static_cast<size_t>(file_row(name, row))];
      return;
    }
    parallel_for(end - begin, kValuesPerTask / length, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t source = file_row(name, begin + i);
        file_->read_float32(tensor, source * length, (source + 1) * length, out + i * length);
      }
    });
  }

 protected:
  const io::TensorSource& tensors() const override { return *file_; }
  const io::TensorInfo* locate(const std::string& name) const override {
    const std::string mapped = gguf_tensor_name(config_, name);
    return mapped.empty() ? nullptr : file_->find(mapped);
  }
  int64_t file_row(const std::string& name, int64_t row) const override {
    return has_interleaved_rows(config_, name) ? interleaved_row(row, config_.head_dim) : row;
  }

 private:
  std::unique_ptr<io::GgufFile> file_;
};

}  // namespace

std::unique_ptr<ModelSource> open_model_source(const std::string& model_name_or_path) {
  const fs::path path(model_name_or_path);
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw MissingInputError(model_name_or_path +
                            ": no such model. Give a folder with config.json and "
                            "model.safetensors, or a .gguf file.");
  }
  if (fs::is_directory(path, error)) {
    if (!fs::exists(path / "config.json", error)) {
      throw MissingInputError(model_name_or_path +
                              ": no config.json in this folder. Give a folder as transformers' "
                              "save_pretrained writes it, or a .gguf file.");
    }
    return std::make_unique<FolderSource>(model_name_or_path);
  }
  if (path.extension() != ".gguf") {
    throw UnsupportedError(
        model_name_or_path +
        ": expected a folder or a .gguf file, found another file. For safetensors "
        "give the folder "
        "that holds config.json.");
  }
  return std::make_unique<GgufSource>(model_name_or_path);
}

}  // namespace shardtune::models
