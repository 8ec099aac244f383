#include "export/model_files.h"

#include <algorithm>
#include <string>

#include "core/log.h"
#include "export/merged_tensors.h"
#include "io/file.h"

namespace shardtune::exporting {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxCarriedBytes = 256 << 20;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

void carry(const fs::path& from, const fs::path& to, const char* name) {
  if (is_file(from / name))
    io::write_file_durably(to / name, io::read_text_file(from / name, kMaxCarriedBytes));
}

void erase(io::Json& object, std::string_view key) {
  std::erase_if(object.as_object(), [&](const auto& member) { return member.first == key; });
}

/// config.json of the exported model: the source's own where it has one, since it may hold keys
/// that other tools read and we do not.
io::Json config_json(const ExportRequest& request) {
  const std::string dtype(name_of(request.options.dtype));
  models::ModelConfig exported = request.source.config();
  // Tied in the base, but one of the two was trained.
  const bool is_split =
      exported.tie_word_embeddings &&
      (&request.model.head() != request.model.tables().front() || splits_tied_head(request));
  exported.tie_word_embeddings = exported.tie_word_embeddings && !is_split;
  io::Json built = models::to_config_json(exported, dtype);
  if (request.source.folder().empty())
    return built;
  const fs::path path = fs::path(request.source.folder()) / "config.json";
  io::Json config = io::read_json_file(path.string());
  if (!config.is_object())
    throw DataError(path.string() + ": expected an object, found " +
                    std::string(config.type_name()) + ". Copy the model again.");
  for (const char* key : {"torch_dtype", "quantization_config", "_name_or_path"})
    erase(config, key);
  config.set("dtype", dtype);
  if (is_split)
    config.set("tie_word_embeddings", false);
  if (const io::Json* architectures = built.find("architectures"))
    config.set("architectures", *architectures);
  return config;
}

io::Json generation_config_json(const ExportRequest& request) {
  const models::ModelConfig& config = request.source.config();
  io::Json json = io::Json::object();
  json.set("_from_model_config", true);
  if (config.bos_token_id >= 0)
    json.set("bos_token_id", config.bos_token_id);
  std::vector<int64_t> ends = config.eos_token_ids;
  if (request.tokenizer != nullptr) {
    for (const int32_t id : request.tokenizer->stop_ids()) {
      if (std::find(ends.begin(), ends.end(), id) == ends.end())
        ends.push_back(id);
    }
  }
  if (ends.size() == 1) {
    json.set("eos_token_id", ends[0]);
  } else if (!ends.empty()) {
    io::Json list = io::Json::array();
    for (const int64_t id : ends)
      list.push_back(id);
    json.set("eos_token_id", std::move(list));
  }
  if (config.pad_token_id >= 0)
    json.set("pad_token_id", config.pad_token_id);
  return json;
}

}  // namespace

void write_model_files(const ExportRequest& request, const fs::path& folder,
                       const io::Json& quantization) {
  io::Json config = config_json(request);
  if (!quantization.is_null())
    config.set("quantization_config", quantization);
  io::write_file_durably(folder / "config.json", config.dump(2) + "\n");
  const fs::path from = request.source.folder();
  if (!from.empty()) {
    for (const char* name :
         {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
          "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE"})
      carry(from, folder, name);
  }
  if (!is_file(folder / "generation_config.json"))
    io::write_file_durably(folder / "generation_config.json",
                           generation_config_json(request).dump(2) + "\n");
  if (request.tokenizer == nullptr) {
    log_warning(
        "export: the model has no tokenizer that is read here; its files are carried as "
        "they are, if any.");
    return;
  }
  io::write_file_durably(folder / "tokenizer.json", request.tokenizer->tokenizer_json());
  io::write_file_durably(folder / "tokenizer_config.json",
                         request.tokenizer->tokenizer_config_json());
  const std::string& chat_template = request.tokenizer->chat_template_text();
  if (!chat_template.empty() && !is_file(folder / "chat_template.jinja"))
    io::write_file_durably(folder / "chat_template.jinja", chat_template);
}

}  // namespace shardtune::exporting
