#include "trainer/checkpoint_reader.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace shardtune::trainer {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // as io/safetensors.h allows
constexpr int64_t kMaxStateBytes = 64 << 20;

/// First byte of the tensors; everything before it was compared with the manifest.
int64_t check_header(VerifiedFile& file) {
  uint64_t length = 0;
  if (file.size() < static_cast<int64_t>(sizeof length))
    throw DataError(file.path().string() + ": expected safetensors, found a file of " +
                    std::to_string(file.size()) + " bytes.");
  file.read(0, std::as_writable_bytes(std::span(&length, 1)));
  const auto begin = static_cast<int64_t>(sizeof length);
  if (length > static_cast<uint64_t>(std::min(kMaxHeaderBytes, file.size() - begin)))
    throw DataError(file.path().string() + ": byte 0: a header of " + std::to_string(length) +
                    " bytes does not fit into the file.");
  std::vector<std::byte> header(static_cast<size_t>(length));
  file.read(begin, header);
  return begin + static_cast<int64_t>(length);
}

std::string from_hex(const std::string& hex, const std::string& where) {
  const auto digit = [&](char c) {
    if (c >= '0' && c <= '9')
      return c - '0';
    if (c >= 'a' && c <= 'f')
      return c - 'a' + 10;
    throw DataError(where + ": expected hexadecimal text");
  };
  if (hex.size() % 2 != 0)
    throw DataError(where + ": expected an even number of hexadecimal digits");
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1]));
  return bytes;
}

void parse_state(const std::string& text, const std::string& name, CheckpointState& state) {
  const io::Json json = io::parse_json(text, name);
  const io::JsonReader reader(json, name);
  state.step = reader.integer("step");
  state.identity = reader.string_or("identity", "");
  for (const char* member : {"config", "hook_state"}) {
    const io::Json* object = json.find(member);
    if (object == nullptr || !object->is_object())
      throw DataError(name + ": " + member + ": expected an object");
    const bool is_config = std::string_view(member) == "config";
    for (const auto& [key, value] : object->as_object()) {
      if (!value.is_string())
        throw DataError(name + ": " + member + "." + key + ": expected a string");
      if (is_config)
        state.config.emplace_back(key, value.as_string());
      else
        state.hook_state.push_back({key, from_hex(value.as_string(), name)});
    }
  }
}

}  // namespace

CheckpointTensors::CheckpointTensors(const fs::path& path, ManifestFile expected)
    : file_(path, std::move(expected)) {
  const int64_t data_begin = check_header(file_);
  const auto source = io::open_safetensors(path);
  const std::byte* first = nullptr;  // tensors fill the file behind the header without a gap
  for (const io::TensorInfo& info : source->tensors()) {
    const std::byte* begin = source->bytes(info).data();
    first = first == nullptr ? begin : std::min(first, begin);
  }
  for (const io::TensorInfo& info : source->tensors()) {
    if (info.dtype != "F32")
      throw DataError(source->describe(info) + ": expected F32, found " + info.dtype + ".");
    tensors_[info.name] = {info.shape, data_begin + (source->bytes(info).data() - first)};
  }
}

void CheckpointTensors::check(const std::string& name, const Shape& shape) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end())
    throw DataError(file_.path().string() + ": " + name + ": expected the tensor, found none.");
  if (!std::ranges::equal(shape.extents(), it->second.shape))
    throw DataError(file_.path().string() + ": " + name + ": expected " + shape.to_string() +
                    ", found another shape. Use the configuration the checkpoint was made with.");
}

void CheckpointTensors::read(const std::string& name, int64_t begin, std::span<float> values) {
  const Place& place = tensors_.at(name);
  file_.read(place.offset + begin * static_cast<int64_t>(sizeof(float)),
             std::as_writable_bytes(values));
}

CheckpointReader::CheckpointReader(const fs::path& folder)
    : folder_(folder),
      manifest_(read_manifest(folder)),
      adapter_(folder / kAdapterFile, listed(kAdapterFile)),
      optimizer_(folder / kOptimizerFile, listed(kOptimizerFile)) {
  state_.seed = manifest_.seed;
  state_.config_sha256 = manifest_.config_sha256;
  state_.base_sha256 = manifest_.base_sha256;
  read_state();
  if (state_.step != manifest_.step || state_.step < 0)
    throw DataError(folder.string() + ": state.json and manifest.json name different steps.");
}

const ManifestFile& CheckpointReader::listed(const char* name) const {
  const auto it = std::ranges::find(manifest_.files, name, &ManifestFile::name);
  if (it == manifest_.files.end())
    throw DataError((folder_ / kManifestFile).string() + ": expected the file " + name +
                    " in it, found none. The checkpoint is damaged; use an earlier one.");
  return *it;
}

void CheckpointReader::read_state() {
  VerifiedFile file(folder_ / kStateFile, listed(kStateFile));
  if (file.size() > kMaxStateBytes)
    throw DataError(file.path().string() + ": expected at most " + std::to_string(kMaxStateBytes) +
                    " bytes, found " + std::to_string(file.size()) + ".");
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  parse_state(text, file.path().string(), state_);
}

}  // namespace shardtune::trainer
