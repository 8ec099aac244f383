// Parses header, metadata and tensor table of a GGUF file.
// Source  ggml-org/ggml docs/gguf.md; limits as llama.cpp's reader has them.
#include "io/gguf_parse.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/checked.h"
#include "io/gguf_types.h"
#include "io/reader.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxNameBytes = 64;
constexpr int64_t kMaxKeys = 1 << 20;
constexpr int64_t kMaxTensors = 1 << 20;
constexpr int64_t kMaxAlignment = int64_t{1} << 30;
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;

class GgufParser {
 public:
  GgufParser(const std::string& name, std::span<const std::byte> bytes)
      : reader_(name, bytes), name_(name), file_bytes_(static_cast<int64_t>(bytes.size())) {}

  GgufContents parse() {
    read_header();
    for (int64_t i = 0; i < num_keys_; ++i)
      read_pair();
    alignment_ = read_alignment();
    std::vector<PlacedTensor> tensors;
    for (int64_t i = 0; i < num_tensors_; ++i)
      tensors.push_back(read_tensor_info());
    place_tensors(std::move(tensors));
    return std::move(contents_);
  }

 private:
  struct PlacedTensor {
    TensorInfo info;
    int64_t relative;   // bytes from the start of the data
    int64_t offset_at;  // where the file says so
  };

  [[noreturn]] void fail_at(int64_t offset, const std::string& message) const {
    throw DataError(name_ + ": byte " + std::to_string(offset) + ": " + message);
  }

  void read_header() {
    const std::string_view magic = reader_.take_text(4, "GGUF magic");
    if (magic != "GGUF")
      fail_at(0, "expected the magic \"GGUF\", found " + quote_text(magic) +
                     ". This is not a GGUF file; give the model's .gguf, or fetch it again.");
    const auto version = reader_.read<uint32_t>("GGUF version");
    if (version != 2 && version != 3)
      fail_at(4,
              "GGUF version: expected 2 or 3, found " + std::to_string(version) +
                  (version != 0 && __builtin_bswap32(version) <= 3 ? " (a big-endian file)" : "") +
                  ". Convert the model again with a current llama.cpp.");
    // name length, one byte of name, dimensions, type, offset; key length, key, type, value.
    num_tensors_ = reader_.read_count(8 + 1 + 4 + 4 + 8, "tensor count");
    if (num_tensors_ > kMaxTensors)
      fail_at(8, "tensor count: expected at most " + std::to_string(kMaxTensors) + ", found " +
                     std::to_string(num_tensors_) + ".");
    num_keys_ = reader_.read_count(8 + 1 + 4 + 1, "metadata count");
    if (num_keys_ > kMaxKeys)
      fail_at(16, "metadata count: expected at most " + std::to_string(kMaxKeys) + ", found " +
                      std::to_string(num_keys_) + ".");
  }

  std::string read_string(uint64_t max_bytes, const std::string& what) {
    const int64_t at = reader_.offset();
    const auto length = reader_.read<uint64_t>(what);
    if (length > max_bytes)
      fail_at(at, what + ": expected a length of at most " + std::to_string(max_bytes) +
                      ", found " + std::to_string(length) + ". The file is damaged.");
    return std::string(reader_.take_text(length, what));
  }

  void read_pair() {
    const int64_t at = reader_.offset();
    std::string key = read_string(kMaxKeyBytes, "metadata key");
    const bool printable =
        std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (key.empty() || !printable)
      fail_at(at, "metadata key: expected printable ASCII, found " + quote_text(key) +
                      ". The file is damaged.");
    const int64_t begin = reader_.offset();
    const auto type = reader_.read<uint32_t>(key);
    GgufValue value = type == kArray ? read_array(key) : read_scalar(type, key);
    contents_.pairs.push_back({key, begin, reader_.offset()});
    if (!contents_.metadata.emplace(key, std::move(value)).second)
      fail_at(at, "duplicate metadata key " + quote_text(key) + ". The file is damaged.");
  }

  bool read_bool(const std::string& key) {
    const int64_t at = reader_.offset();
    const auto value = reader_.read<uint8_t>(key);
    if (value > 1)
      fail_at(at, key + ": expected a boolean of 0 or 1, found " + std::to_string(value) + ".");
    return value == 1;
  }

  int64_t read_unsigned64(const std::string& key) {
    const int64_t at = reader_.offset();
    const auto value = reader_.read<uint64_t>(key);
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail_at(at, key + ": expected an integer below 2^63, found " + std::to_string(value) + ".");
    return static_cast<int64_t>(value);
  }

  [[noreturn]] void fail_type(const std::string& key, uint32_t type) const {
    fail_at(reader_.offset() - 4, key + ": expected a metadata value type from 0 to 12, found " +
                                      std::to_string(type) +
                                      ". The file is damaged or newer than this reader.");
  }

  GgufValue read_scalar(uint32_t type, const std::string& key) {
    switch (type) {
      case 6:
        return static_cast<double>(reader_.read<float>(key));
      case 7:
        return read_bool(key);
      case kString:
        return read_string(std::numeric_limits<uint64_t>::max(), key);
      case 12:
        return reader_.read<double>(key);
      default:
        return read_integer(type, key);
    }
  }

  int64_t read_integer(uint32_t type, const std::string& key) {
    switch (type) {
      case 0:
        return reader_.read<uint8_t>(key);
      case 1:
        return reader_.read<int8_t>(key);
      case 2:
        return reader_.read<uint16_t>(key);
      case 3:
        return reader_.read<int16_t>(key);
      case 4:
        return reader_.read<uint32_t>(key);
      case 5:
        return reader_.read<int32_t>(key);
      case 10:
        return read_unsigned64(key);
      case 11:
        return reader_.read<int64_t>(key);
      default:
        fail_type(key, type);
    }
  }

  // Fills an array whose elements take at least min_bytes each in the file.
  template <typename T, typename ReadElement>
  std::vector<T> read_elements(const std::string& key, uint64_t min_bytes,
                               const ReadElement& read_element) {
    std::vector<T> values;
    const int64_t count = reader_.read_count(min_bytes, key + ": array length");
    values.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      values.push_back(read_element());
    return values;
  }

  GgufValue read_array(const std::string& key) {
    constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
    const auto type = reader_.read<uint32_t>(key);
    if (type == kArray)
      fail_at(reader_.offset() - 4, key +
                                        ": expected an array of plain values, found an array of "
                                        "arrays. No known metadata key has one.");
    if (type >= std::size(kSizes))
      fail_type(key, type);
    const uint64_t size = kSizes[type];
    if (type == 6)
      return read_elements<double>(key, size, [&] { return reader_.read<float>(key); });
    if (type == 12)
      return read_elements<double>(key, size, [&] { return reader_.read<double>(key); });
    if (type == 7)
      return read_elements<bool>(key, size, [&] { return read_bool(key); });
    if (type == kString)
      return read_elements<std::string>(
          key, size, [&] { return read_string(std::numeric_limits<uint64_t>::max(), key); });
    return read_elements<int64_t>(key, size, [&] { return read_integer(type, key); });
  }

  int64_t read_alignment() const {
    const auto found = contents_.metadata.find("general.alignment");
    if (found == contents_.metadata.end())
      return 32;
    const auto* value = std::get_if<int64_t>(&found->second);
    if (value == nullptr || *value < 1 || *value > kMaxAlignment ||
        !std::has_single_bit(static_cast<uint64_t>(*value)))
      fail_at(reader_.offset(), "general.alignment: expected a power of two up to 2^30, found " +
                                    (value == nullptr ? "another type" : std::to_string(*value)) +
                                    ". The file is damaged.");
    return *value;
  }

  std::vector<int64_t> read_shape(const std::string& tensor) {
    const int64_t at = reader_.offset();
    const auto ndim = reader_.read<uint32_t>(tensor + ": dimensions");
    if (ndim > 4)
      fail_at(at, tensor + ": expected at most 4 dimensions, found " + std::to_string(ndim) + ".");
    std::vector<int64_t> shape;
    for (uint32_t i = 0; i < ndim; ++i) {
      const int64_t extent_at = reader_.offset();
      const auto extent = reader_.read<uint64_t>(tensor + ": dimension");
      if (extent == 0 || extent > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail_at(extent_at, tensor + ": expected a dimension from 1 to 2^63 - 1, found " +
                               std::to_string(extent) + ".");
      shape.insert(shape.begin(), static_cast<int64_t>(extent));
    }
    if (!try_numel(shape))
      fail_at(at, tensor + ": the number of elements of " + shape_text(shape) +
                      " does not fit 63 bits.");
    return shape;
  }

  PlacedTensor read_tensor_info() {
    const int64_t at = reader_.offset();
    TensorInfo info;
    info.name = read_string(kMaxNameBytes, "tensor name");
    if (info.name.empty() || find_invalid_utf8(info.name))
      fail_at(at, "tensor name: expected UTF-8 text, found " + quote_text(info.name) + ".");
    const std::string shown = quote_text(info.name);
    info.shape = read_shape(shown);
    const int64_t type_at = reader_.offset();
    const auto id = reader_.read<uint32_t>(shown + ": type");
    const GgufType* type = find_gguf_type(id);
    if (type == nullptr)
      fail_at(type_at, shown + ": expected a known tensor type, found " + std::to_string(id) +
                           ". Convert the model to one of the types in docs/status.md.");
    info.dtype = type->name;
    const int64_t row = info.shape.empty() ? 1 : info.shape.back();
    if (row % type->block_size != 0)
      fail_at(type_at, shown + ": expected rows of whole " + info.dtype + " blocks of " +
                           std::to_string(type->block_size) + " elements, found rows of " +
                           std::to_string(row) + ".");
    const auto num_bytes = try_mul(*try_numel(info.shape) / type->block_size, type->block_bytes);
    if (!num_bytes)
      fail_at(type_at, shown + ": the size in bytes of " + shape_text(info.shape) +
                           " does not fit 63 bits.");
    info.num_bytes = *num_bytes;
    const int64_t offset_at = reader_.offset();
    const auto offset = reader_.read<uint64_t>(shown + ": offset");
    if (offset > static_cast<uint64_t>(file_bytes_) ||
        offset % static_cast<uint64_t>(alignment_) != 0)
      fail_at(offset_at, shown + ": expected an offset inside the file, a multiple of " +
                             std::to_string(alignment_) + ", found " + std::to_string(offset) +
                             ".");
    return {std::move(info), static_cast<int64_t>(offset), offset_at};
  }

  void place_tensors(std::vector<PlacedTensor> tensors) {
    const int64_t data_start = round_up(reader_.offset(), alignment_);
    const int64_t data_bytes = file_bytes_ - data_start;
    for (const PlacedTensor& tensor : tensors) {
      const auto end = try_add(tensor.relative, tensor.info.num_bytes);
      if (!end || *end > data_bytes)
        fail_at(tensor.offset_at,
                quote_text(tensor.info.name) + ": expected " +
                    std::to_string(tensor.info.num_bytes) + " bytes from data offset " +
                    std::to_string(tensor.relative) + ", found " +
                    std::to_string(std::max<int64_t>(data_bytes - tensor.relative, 0)) +
                    " to the end of the file. It is truncated or damaged; fetch it again.");
    }
    check_overlap(tensors);
    for (PlacedTensor& tensor : tensors) {
      const std::string name = tensor.info.name;
      if (!contents_.tensors.add(std::move(tensor.info), {0, data_start + tensor.relative}))
        fail_at(tensor.offset_at, "two tensors have the name " + quote_text(name) + ".");
    }
  }

  void check_overlap(const std::vector<PlacedTensor>& tensors) const {
    std::vector<const PlacedTensor*> sorted;
    for (const PlacedTensor& tensor : tensors)
      sorted.push_back(&tensor);
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto* a, const auto* b) { return a->relative < b->relative; });
    for (size_t i = 1; i < sorted.size(); ++i) {
      if (sorted[i - 1]->relative + sorted[i - 1]->info.num_bytes > sorted[i]->relative)
        fail_at(sorted[i]->offset_at, quote_text(sorted[i]->info.name) +
                                          ": its bytes overlap those of " +
                                          quote_text(sorted[i - 1]->info.name) + ".");
    }
  }

  BoundedReader reader_;
  const std::string& name_;
  int64_t file_bytes_;
  int64_t num_tensors_ = 0;
  int64_t num_keys_ = 0;
  int64_t alignment_ = 32;
  GgufContents contents_;
};
}  // namespace

GgufContents parse_gguf(const std::string& name, std::span<const std::byte> bytes) {
  return GgufParser(name, bytes).parse();
}

}  // namespace shardtune::io
