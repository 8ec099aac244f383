// Reading: one file through parse_safetensors, a sharded folder through its index.
#include "io/safetensors.h"

#include <algorithm>
#include <set>

#include "io/float_decode.h"
#include "io/json.h"
#include "io/safetensors_parse.h"
#include "io/tensor_table.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxShards = 4096;

using Decode = void (*)(const std::byte* from, std::span<float> out);

// nullptr for a dtype without a decoder.
Decode decoder_of(std::string_view dtype) {
  static constexpr std::pair<std::string_view, Decode> kDecoders[] = {
      {"F32", decode_as<float>},   {"BF16", decode_bf16},       {"F16", decode_f16},
      {"F64", decode_as<double>},  {"I8", decode_as<int8_t>},   {"U8", decode_as<uint8_t>},
      {"I16", decode_as<int16_t>}, {"I32", decode_as<int32_t>}, {"I64", decode_as<int64_t>}};
  for (const auto& [name, decode] : kDecoders) {
    if (name == dtype)
      return decode;
  }
  return nullptr;
}

class MappedSafetensors final : public TensorSource {
 public:
  /// Maps one file and adds its tensors; their names must be new.
  void add_file(const fs::path& path) {
    MappedFile file(path);
    for (SafetensorsEntry& entry : parse_safetensors(path.string(), file.bytes())) {
      const std::string name = entry.info.name;
      if (!table_.add(std::move(entry.info), {files_.size(), entry.offset}))
        throw DataError(path.string() + ": byte " + std::to_string(entry.offset) + ": " +
                        quote_text(name) + ": a tensor of this name is also in " +
                        files_[table_.place(*table_.find(name)).file].path().string() +
                        ". Use the shards of one model.");
    }
    files_.push_back(std::move(file));
  }

  const std::vector<TensorInfo>& tensors() const override { return table_.infos(); }
  const TensorInfo* find(std::string_view name) const override { return table_.find(name); }
  const fs::path& path_of(const TensorInfo& tensor) const {
    return files_[table_.place(tensor).file].path();
  }

  std::span<const std::byte> bytes(const TensorInfo& tensor) const override {
    const TensorTable::Place& place = table_.place(tensor);
    const MappedFile& file = files_[place.file];
    file.check_unchanged();
    return file.bytes().subspan(static_cast<size_t>(place.offset),
                                static_cast<size_t>(tensor.num_bytes));
  }

  void read_float32(const TensorInfo& tensor, int64_t begin, int64_t end,
                    float* out) const override {
    const Decode decode = decoder_for(tensor);
    check_element_range(tensor, begin, end, 1);
    const auto all = bytes(tensor);
    if (begin == end)
      return;
    const int64_t size = tensor.num_bytes / *try_numel(tensor.shape);
    decode(all.data() + begin * size, {out, static_cast<size_t>(end - begin)});
  }

  void check_readable(const TensorInfo& tensor) const override { decoder_for(tensor); }
  void drop(const TensorInfo& tensor) const noexcept override {
    if (const TensorInfo* own = table_.find(tensor.name)) {
      const TensorTable::Place& place = table_.place(*own);
      const MappedFile& file = files_[place.file];
      file.drop(file.bytes().subspan(static_cast<size_t>(place.offset),
                                     static_cast<size_t>(own->num_bytes)));
    }
  }

  std::string describe(const TensorInfo& tensor) const override {
    return path_of(tensor).string() + ": " + tensor.name;
  }

 private:
  Decode decoder_for(const TensorInfo& tensor) const {
    if (const Decode decode = decoder_of(tensor.dtype))
      return decode;
    throw UnsupportedError(describe(tensor) + ": expected one of F32, BF16, F16, F64, I8, U8, " +
                           "I16, I32, I64, found " + tensor.dtype +
                           ", which has no decoder here yet (docs/status.md). Save the model in "
                           "bfloat16 or float32.");
  }

  std::vector<MappedFile> files_;
  TensorTable table_;
};

bool is_pickle_name(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt" ||
         extension == ".pkl" || extension == ".pickle";
}

[[noreturn]] void refuse_pickle(const fs::path& path) {
  throw UnsupportedError(path.string() + ": expected safetensors, found a pickle by its name. " +
                         "Pickles can run any code and are never read. Convert it once where you "
                         "trust it: model.save_pretrained(folder, safe_serialization=True).");
}

// Pickles by content: a torch zip archive or the protocol byte of a bare pickle.
void refuse_pickle_content(const fs::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<size_t>(bytes.size(), 4));
  // A header length that starts so would be over 100 MB (zip) or have an impossible second byte.
  if (start == "PK\x03\x04")
    refuse_pickle(path);
  if (start == "GGUF")
    throw DataError(path.string() +
                    ": byte 0: expected safetensors, found a GGUF file. Give it its name back "
                    "(.gguf) and pass it as a GGUF model.");
}

std::set<std::string> shards_of(const fs::path& folder, const Json& weight_map,
                                const std::string& name) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map.as_object()) {
    if (!shard.is_string())
      throw DataError(name + ": weight_map: " + quote_text(tensor) +
                      ": expected a file name, found a value of type " +
                      std::string(shard.type_name()) + ".");
    if (shards.contains(shard.as_string()))
      continue;
    const fs::path path =
        join_untrusted(folder, shard.as_string(), name + ": weight_map: " + quote_text(tensor));
    if (is_pickle_name(path))
      refuse_pickle(path);
    shards.insert(shard.as_string());
    if (shards.size() > kMaxShards)
      throw DataError(name + ": weight_map: expected at most " + std::to_string(kMaxShards) +
                      " shard files.");
  }
  return shards;
}

std::unique_ptr<TensorSource> open_sharded(const fs::path& folder) {
  const std::string name = (folder / kIndexName).string();
  const Json index = read_json_file(name, {.max_bytes = kMaxIndexBytes, .max_nodes = 4'000'000});
  const Json* weight_map = index.find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->as_object().empty())
    throw DataError(name + ": weight_map: expected an object of tensor names and files, found " +
                    (weight_map == nullptr ? "nothing" : weight_map->dump().substr(0, 40)) +
                    ". Use the file as its author published it.");
  auto source = std::make_unique<MappedSafetensors>();
  for (const std::string& shard : shards_of(folder, *weight_map, name)) {
    const fs::path path = join_untrusted(folder, shard, name);
    std::error_code error;
    if (!fs::exists(path, error))
      throw MissingInputError(path.string() + ": this shard of " + kIndexName +
                              " is not there. Fetch all files of the model.");
    source->add_file(path);
  }
  for (const auto& [tensor, shard] : weight_map->as_object()) {
    const TensorInfo* found = source->find(tensor);
    if (found == nullptr || source->path_of(*found).filename() != fs::path(shard.as_string()))
      throw DataError(
          name + ": weight_map: " + quote_text(tensor) + ": expected it in " + shard.as_string() +
          ", found it " +
          (found == nullptr ? "in no shard" : "in " + source->path_of(*found).filename().string()) +
          ". Use the index and the shards of one model.");
  }
  return source;
}

std::string list_folder(const fs::path& folder) {
  constexpr size_t kShown = 12;
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + quote_text(names[i]);
  if (names.size() > kShown)
    text += " and " + std::to_string(names.size() - kShown) + " more";
  return names.empty() ? "nothing" : text;
}

std::unique_ptr<TensorSource> open_folder(const fs::path& folder) {
  const fs::path single = folder / "model.safetensors";
  std::error_code error;
  // Where both are there, transformers loads the one file.
  if (fs::exists(single, error))
    return open_safetensors(single);
  if (fs::exists(folder / kIndexName, error))
    return open_sharded(folder);
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (is_pickle_name(name) && name.starts_with("pytorch_model"))
      refuse_pickle(it->path());
  }
  throw MissingInputError(folder.string() + ": expected model.safetensors or " + kIndexName +
                          ", found " + list_folder(folder) + ". Check the model folder.");
}
}  // namespace

std::unique_ptr<TensorSource> open_safetensors(const fs::path& file_or_folder) {
  std::error_code error;
  if (fs::is_directory(file_or_folder, error))
    return open_folder(file_or_folder);
  if (is_pickle_name(file_or_folder) && fs::exists(file_or_folder, error))
    refuse_pickle(file_or_folder);
  refuse_pickle_content(file_or_folder);
  auto source = std::make_unique<MappedSafetensors>();
  source->add_file(file_or_folder);
  return source;
}

}  // namespace shardtune::io
