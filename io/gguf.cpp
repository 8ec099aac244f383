#include "io/gguf.h"

#include <algorithm>

#include "io/gguf_parse.h"
#include "io/gguf_types.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
class MappedGguf final : public GgufFile {
 public:
  explicit MappedGguf(const fs::path& path)
      : file_(path), path_(path.string()), contents_(parse_gguf(path_, file_.bytes())) {}

  const std::map<std::string, GgufValue, std::less<>>& metadata() const override {
    return contents_.metadata;
  }
  const std::string& path() const override { return path_; }
  std::vector<GgufPair> pairs() const override {
    file_.check_unchanged();
    std::vector<GgufPair> pairs;
    for (const GgufContents::Pair& pair : contents_.pairs) {
      const auto bytes = file_.bytes().subspan(static_cast<size_t>(pair.begin),
                                               static_cast<size_t>(pair.end - pair.begin));
      pairs.push_back({pair.key, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}});
    }
    return pairs;
  }
  const std::vector<TensorInfo>& tensors() const override { return contents_.tensors.infos(); }
  const TensorInfo* find(std::string_view name) const override {
    return contents_.tensors.find(name);
  }
  std::span<const std::byte> bytes(const TensorInfo& tensor) const override {
    const TensorTable::Place& place = contents_.tensors.place(tensor);
    file_.check_unchanged();
    return file_.bytes().subspan(static_cast<size_t>(place.offset),
                                 static_cast<size_t>(tensor.num_bytes));
  }
  void read_float32(const TensorInfo& tensor, int64_t begin, int64_t end,
                    float* out) const override {
    const GgufType& type = type_of(tensor);
    check_element_range(tensor, begin, end, type.block_size);
    const auto from =
        bytes(tensor).subspan(static_cast<size_t>(begin / type.block_size * type.block_bytes));
    type.decode(from.data(), {out, static_cast<size_t>(end - begin)});
  }
  void check_readable(const TensorInfo& tensor) const override { type_of(tensor); }
  void drop(const TensorInfo& tensor) const noexcept override {
    if (const TensorInfo* own = contents_.tensors.find(tensor.name)) {
      const TensorTable::Place& place = contents_.tensors.place(*own);
      file_.drop(file_.bytes().subspan(static_cast<size_t>(place.offset),
                                       static_cast<size_t>(own->num_bytes)));
    }
  }
  std::string describe(const TensorInfo& tensor) const override {
    return path_ + ": " + tensor.name;
  }

 private:
  /// UnsupportedError unless the tensor's type has a decoder.
  const GgufType& type_of(const TensorInfo& tensor) const {
    const GgufType* type = find_gguf_type(tensor.dtype);
    if (type == nullptr || type->decode == nullptr)
      throw UnsupportedError(describe(tensor) + ": expected one of " + decodable_gguf_types() +
                             "; found " + tensor.dtype +
                             ", which has no decoder here yet (docs/status.md). Convert the model "
                             "with llama.cpp's llama-quantize, for example to Q8_0.");
    return *type;
  }

  MappedFile file_;
  std::string path_;
  GgufContents contents_;
};

std::string describe_value(const GgufValue& value) {
  constexpr std::string_view kNames[] = {"",
                                         "",
                                         "",
                                         "",
                                         "an array of integers",
                                         "an array of numbers",
                                         "an array of booleans",
                                         "an array of strings"};
  if (const auto* integer = std::get_if<int64_t>(&value))
    return std::to_string(*integer);
  if (const auto* number = std::get_if<double>(&value))
    return std::to_string(*number);
  if (const auto* boolean = std::get_if<bool>(&value))
    return *boolean ? "true" : "false";
  if (const auto* text = std::get_if<std::string>(&value))
    return "the string " + quote_text(*text);
  return std::string(kNames[value.index()]);
}

// The value of a key as T; nullptr when the key is absent.
template <typename T>
const T* typed(const GgufFile& file, std::string_view key, std::string_view expected) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    return nullptr;
  if (const auto* value = std::get_if<T>(&found->second))
    return value;
  throw DataError(file.path() + ": " + std::string(key) + ": expected " + std::string(expected) +
                  ", found " + describe_value(found->second) +
                  ". Convert the model again with a current llama.cpp.");
}

[[noreturn]] void throw_absent(const GgufFile& file, std::string_view key,
                               std::string_view expected) {
  throw DataError(file.path() + ": " + std::string(key) + ": expected " + std::string(expected) +
                  ", found no such key. Convert the model again with a current llama.cpp.");
}
}  // namespace

int64_t GgufFile::integer(std::string_view key) const {
  if (const auto* value = typed<int64_t>(*this, key, "an integer"))
    return *value;
  throw_absent(*this, key, "an integer");
}

int64_t GgufFile::integer_or(std::string_view key, int64_t otherwise) const {
  const auto* value = typed<int64_t>(*this, key, "an integer");
  return value == nullptr ? otherwise : *value;
}

double GgufFile::number(std::string_view key) const {
  if (!metadata().contains(key))
    throw_absent(*this, key, "a number");
  return number_or(key, 0.0);
}

double GgufFile::number_or(std::string_view key, double otherwise) const {
  const auto found = metadata().find(key);
  if (found != metadata().end() && std::holds_alternative<int64_t>(found->second))
    return static_cast<double>(std::get<int64_t>(found->second));
  const auto* value = typed<double>(*this, key, "a number");
  return value == nullptr ? otherwise : *value;
}

bool GgufFile::boolean_or(std::string_view key, bool otherwise) const {
  const auto* value = typed<bool>(*this, key, "a boolean");
  return value == nullptr ? otherwise : *value;
}

std::string GgufFile::string(std::string_view key) const {
  if (const auto* value = typed<std::string>(*this, key, "a string"))
    return *value;
  throw_absent(*this, key, "a string");
}

std::string GgufFile::string_or(std::string_view key, std::string_view otherwise) const {
  const auto* value = typed<std::string>(*this, key, "a string");
  return value == nullptr ? std::string(otherwise) : *value;
}

const std::vector<std::string>* GgufFile::strings(std::string_view key) const {
  return typed<std::vector<std::string>>(*this, key, "an array of strings");
}

const std::vector<int64_t>* GgufFile::integers(std::string_view key) const {
  return typed<std::vector<int64_t>>(*this, key, "an array of integers");
}

const std::vector<double>* GgufFile::numbers(std::string_view key) const {
  return typed<std::vector<double>>(*this, key, "an array of numbers");
}

std::unique_ptr<GgufFile> open_gguf(const fs::path& path) {
  return std::make_unique<MappedGguf>(path);
}

}  // namespace shardtune::io
