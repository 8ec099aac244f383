// inspect: what a file or folder holds, from its headers alone.
#include <algorithm>
#include <filesystem>

#include "adapters/adapter.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "io/text.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/verbs.h"
#include "trainer/manifest.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxShownText = 200;
constexpr size_t kMaxShownElements = 8;

bool has_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

io::Json tensors_json(const io::TensorSource& source) {
  io::Json list = io::Json::array();
  for (const io::TensorInfo& tensor : source.tensors()) {
    io::Json shape = io::Json::array();
    for (const int64_t extent : tensor.shape)
      shape.push_back(extent);
    io::Json entry = io::Json::object();
    entry.set("name", tensor.name);
    entry.set("dtype", tensor.dtype);
    entry.set("shape", std::move(shape));
    entry.set("bytes", tensor.num_bytes);
    list.push_back(std::move(entry));
  }
  return list;
}

io::Json gguf_value(const io::GgufValue& value) {
  const auto shorten = [](const std::string& text) {
    std::string shown = !io::find_invalid_utf8(text) ? text : "(not UTF-8)";
    if (shown.size() <= kMaxShownText)
      return shown;
    size_t end = kMaxShownText;
    while (end > 0 && (static_cast<unsigned char>(shown[end]) & 0xC0) == 0x80)
      --end;
    return shown.substr(0, end) + "... (" + std::to_string(shown.size()) + " bytes)";
  };
  return std::visit(
      [&](const auto& held) -> io::Json {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::string>) {
          return io::Json(shorten(held));
        } else if constexpr (std::is_arithmetic_v<Held>) {
          return io::Json(held);
        } else {
          io::Json head = io::Json::array();
          for (size_t i = 0; i < std::min(held.size(), kMaxShownElements); ++i) {
            if constexpr (std::is_same_v<Held, std::vector<std::string>>)
              head.push_back(shorten(held[i]));
            else
              head.push_back(io::Json(static_cast<typename Held::value_type>(held[i])));
          }
          io::Json list = io::Json::object();
          list.set("count", static_cast<int64_t>(held.size()));
          list.set("first", std::move(head));
          return list;
        }
      },
      value);
}

io::Json inspect_gguf(const fs::path& path) {
  const auto file = io::open_gguf(path);
  io::Json metadata = io::Json::object();
  for (const auto& [key, value] : file->metadata())
    metadata.as_object().emplace_back(key, gguf_value(value));
  io::Json json = io::Json::object();
  json.set("kind", "gguf");
  json.set("metadata", std::move(metadata));
  json.set("tensors", tensors_json(*file));
  return json;
}

io::Json inspect_safetensors(const fs::path& path) {
  io::Json json = io::Json::object();
  json.set("kind", "safetensors");
  json.set("tensors", tensors_json(*io::open_safetensors(path)));
  return json;
}

io::Json read_object(const fs::path& path) {
  io::Json json = io::read_json_file(path.string());
  const io::JsonReader checked(json, path.string());
  return json;
}

io::Json inspect_model(const fs::path& folder) {
  io::Json json = io::Json::object();
  json.set("kind", "model");
  json.set("config", read_object(folder / "config.json"));
  json.set("tensors", tensors_json(*io::open_safetensors(folder)));
  return json;
}

io::Json inspect_adapter(const fs::path& folder) {
  io::Json json = io::Json::object();
  json.set("kind", "adapter");
  json.set("config", read_object(folder / "adapter_config.json"));
  if (has_file(folder / "shardtune.json"))
    json.set("trained_on", read_object(folder / "shardtune.json"));
  const bool is_hub = has_file(folder / adapters::kAdapterHubFolder.weights_file);
  const auto& names = is_hub ? adapters::kAdapterHubFolder : adapters::kPeftFolder;
  json.set("tensors", tensors_json(*io::open_safetensors(folder / names.weights_file)));
  return json;
}

io::Json inspect_checkpoint(const fs::path& folder) {
  const trainer::Manifest manifest = trainer::verify_folder(folder);
  io::Json files = io::Json::array();
  io::Json tensors = io::Json::array();
  for (const trainer::ManifestFile& file : manifest.files) {
    io::Json entry = io::Json::object();
    entry.set("name", file.name);
    entry.set("bytes", file.size);
    entry.set("sha256", file.sha256);
    files.push_back(std::move(entry));
    if (!file.name.ends_with(".safetensors"))
      continue;
    const io::Json held = tensors_json(*io::open_safetensors(folder / file.name));
    for (const io::Json& tensor : held.as_array())
      tensors.push_back(tensor);
  }
  io::Json json = io::Json::object();
  json.set("kind", "checkpoint");
  json.set("step", manifest.step);
  json.set("seed", std::to_string(manifest.seed));
  json.set("config_sha256", manifest.config_sha256);
  json.set("base_sha256", manifest.base_sha256);
  json.set("verified", true);
  json.set("files", std::move(files));
  json.set("tensors", std::move(tensors));
  return json;
}

io::Json inspect_run(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  io::Json list = io::Json::array();
  for (const std::string& name : names)
    list.push_back(!io::find_invalid_utf8(name) ? io::Json(name) : io::Json("(not UTF-8)"));
  io::Json json = io::Json::object();
  json.set("kind", "run");
  json.set("entries", std::move(list));
  return json;
}

io::Json inspect(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error))
    throw MissingInputError(path.string() +
                            ": no such file or folder. Give a model, adapter or checkpoint.");
  if (!fs::is_directory(path, error)) {
    if (path.extension() == ".gguf")
      return inspect_gguf(path);
    if (path.extension() == ".safetensors")
      return inspect_safetensors(path);
    throw UnsupportedError(path.string() +
                           ": expected .gguf or .safetensors, or a folder, found another file. "
                           "Give one of these; pickles (.bin, .pt) can run code when read and are "
                           "never opened.");
  }
  if (has_file(path / trainer::kManifestFile))
    return inspect_checkpoint(path);
  if (has_file(path / "adapter_config.json"))
    return inspect_adapter(path);
  if (has_file(path / "config.json"))
    return inspect_model(path);
  if (has_file(path / "resolved_config.yaml"))
    return inspect_run(path);
  throw MissingInputError(
      path.string() +
      ": expected a folder with config.json, adapter_config.json, manifest.json "
      "or resolved_config.yaml, found none of them. Give the folder of a model, adapter, "
      "checkpoint "
      "or run.");
}

/// A name of a hostile file as it can stand in a terminal.
std::string shown_name(const io::Json& tensor) {
  const std::string& name = tensor.find("name")->as_string();
  const bool is_plain =
      std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < 127; });
  return is_plain ? name : io::quote_text(name, 200);
}

std::string tensor_table(const io::Json& tensors) {
  size_t width = 0;
  int64_t num_bytes = 0;
  int64_t num_elements = 0;
  for (const io::Json& tensor : tensors.as_array())
    width = std::max(width, shown_name(tensor).size());
  std::string text;
  for (const io::Json& tensor : tensors.as_array()) {
    std::string name = shown_name(tensor);
    name.resize(width, ' ');
    std::string dtype = tensor.find("dtype")->as_string();
    dtype.resize(std::max<size_t>(dtype.size(), 5), ' ');
    text += "  " + name + "  " + dtype + "  " + tensor.find("shape")->dump() + "\n";
    int64_t numel = 1;
    for (const io::Json& extent : tensor.find("shape")->as_array())
      numel *= extent.as_integer();
    num_elements += numel;
    num_bytes += tensor.find("bytes")->as_integer();
  }
  return std::to_string(tensors.as_array().size()) + " tensors, " + std::to_string(num_elements) +
         " elements, " + std::to_string(num_bytes) + " bytes\n" + text;
}

std::string as_text(const io::Json& json) {
  std::string text;
  for (const auto& [key, value] : json.as_object()) {
    if (key == "tensors")
      text += tensor_table(value);
    else if (value.is_object() || value.is_array())
      text += key + " " + value.dump(2) + "\n";
    else
      text += key + " " + (value.is_string() ? value.as_string() : value.dump()) + "\n";
  }
  return text;
}

}  // namespace

int run_inspect(Arguments arguments) {
  CommandLine line(
      "inspect PATH [--json]",
      "Tensors and metadata of a .safetensors or .gguf file, or of a folder of a model, "
      "adapter, checkpoint or run. A checkpoint is verified against its manifest.");
  line.positional("PATH", "file or folder");
  line.flag("json", "print one JSON document");
  if (!line.parse(arguments))
    return 0;
  const io::Json json = inspect(line.required("PATH"));
  if (line.has("json"))
    print_json(json);
  else
    print(as_text(json));
  return 0;
}

}  // namespace shardtune::launch
