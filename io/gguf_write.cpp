#include "io/gguf_write.h"

#include <set>

#include "core/checked.h"
#include "core/error.h"
#include "io/gguf_types.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
constexpr int64_t kAlignment = 32;
constexpr size_t kMaxNameBytes = 64;

enum class ValueType : uint32_t {
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9
};

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_string(std::string& bytes, std::string_view text) {
  append(bytes, static_cast<uint64_t>(text.size()));
  bytes += text;
}

std::string array_head(ValueType type, size_t count) {
  std::string bytes;
  append(bytes, ValueType::kArray);
  append(bytes, type);
  append(bytes, static_cast<uint64_t>(count));
  return bytes;
}

template <typename T>
GgufPair scalar(std::string key, ValueType type, T value) {
  GgufPair pair{std::move(key), {}};
  append(pair.encoded, type);
  append(pair.encoded, value);
  return pair;
}

template <typename T>
GgufPair array(std::string key, ValueType type, std::span<const T> values) {
  GgufPair pair{std::move(key), array_head(type, values.size())};
  pair.encoded.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  return pair;
}

int64_t size_in_bytes(const TensorToWrite& tensor) {
  const GgufType* type = find_gguf_type(tensor.dtype);
  const auto numel = try_numel(tensor.shape);
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (type == nullptr || !numel || row % type->block_size != 0 || tensor.shape.size() > 4)
    throw ArgumentError(tensor.name + ": cannot be written as " + tensor.dtype +
                        " GGUF: unknown type, impossible shape, or rows of no whole blocks");
  return checked_mul(*numel / type->block_size, type->block_bytes);
}

std::string make_header(std::span<const GgufPair> metadata,
                        std::span<const TensorToWrite> tensors) {
  std::string bytes = "GGUF";
  append(bytes, uint32_t{3});
  append(bytes, static_cast<uint64_t>(tensors.size()));
  append(bytes, static_cast<uint64_t>(metadata.size()));
  for (const GgufPair& pair : metadata) {
    append_string(bytes, pair.key);
    bytes += pair.encoded;
  }
  std::set<std::string_view> names;
  int64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    if (tensor.name.size() > kMaxNameBytes || find_invalid_utf8(tensor.name) ||
        !names.insert(tensor.name).second)
      throw ArgumentError("GGUF: the tensor name " + quote_text(tensor.name) +
                          " is taken, longer than 64 bytes or not UTF-8");
    append_string(bytes, tensor.name);
    append(bytes, static_cast<uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent)
      append(bytes, static_cast<uint64_t>(*extent));
    const int64_t num_bytes = size_in_bytes(tensor);
    append(bytes, find_gguf_type(tensor.dtype)->id);
    append(bytes, static_cast<uint64_t>(offset));
    offset = round_up(checked_add(offset, num_bytes), kAlignment);
  }
  return bytes;
}

void pad(FileWriter& file) {
  const int64_t at = file.bytes_written();
  file.write(std::string(static_cast<size_t>(round_up(at, kAlignment) - at), '\0'));
}
}  // namespace

GgufPair gguf_uint32(std::string key, uint32_t value) {
  return scalar(std::move(key), ValueType::kUint32, value);
}
GgufPair gguf_float32(std::string key, float value) {
  return scalar(std::move(key), ValueType::kFloat32, value);
}
GgufPair gguf_bool(std::string key, bool value) {
  return scalar(std::move(key), ValueType::kBool, static_cast<uint8_t>(value ? 1 : 0));
}
GgufPair gguf_string(std::string key, std::string_view value) {
  GgufPair pair{std::move(key), {}};
  append(pair.encoded, ValueType::kString);
  append_string(pair.encoded, value);
  return pair;
}
GgufPair gguf_strings(std::string key, std::span<const std::string> values) {
  GgufPair pair{std::move(key), array_head(ValueType::kString, values.size())};
  for (const std::string& value : values)
    append_string(pair.encoded, value);
  return pair;
}
GgufPair gguf_int32s(std::string key, std::span<const int32_t> values) {
  return array(std::move(key), ValueType::kInt32, values);
}
GgufPair gguf_float32s(std::string key, std::span<const float> values) {
  return array(std::move(key), ValueType::kFloat32, values);
}

void write_gguf(const fs::path& path, std::span<const GgufPair> metadata,
                std::span<const TensorToWrite> tensors) {
  const std::string header = make_header(metadata, tensors);
  fs::path partial = path;
  partial += ".partial";
  FileWriter file(partial);
  file.write(header);
  pad(file);
  for (const TensorToWrite& tensor : tensors) {
    write_tensor(file, tensor, size_in_bytes(tensor));
    pad(file);
  }
  file.commit();
  rename_durably(partial, path);
}

}  // namespace shardtune::io
