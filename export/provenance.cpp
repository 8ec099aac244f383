#include "export/provenance.h"

#include "core/error.h"

namespace shardtune::exporting {
namespace {

// 2: merge_aware_weights, without which an adapter would be added to the base twice.
constexpr int64_t kFormatVersion = 2;

quant::QuantizationOptions quantization_from(const io::Json& root, const std::string& name) {
  const io::Json* section = root.find("quantization");
  if (section == nullptr || !section->is_object())
    throw DataError(name + ": quantization: expected an object, found " +
                    std::string(section == nullptr ? "nothing" : section->type_name()) +
                    ". Copy the adapter folder again.");
  const io::JsonReader reader(*section, name + ": quantization");
  quant::QuantizationOptions options;
  options.method = reader.string("method");
  options.block_size = reader.integer_or("block_size", options.block_size);
  options.double_quant = reader.boolean_or("double_quant", false);
  if (!quant::frozen_formats().contains(options.method))
    throw DataError(name + ": quantization.method: unknown '" + options.method + "'" +
                    known_names_hint(options.method, quant::frozen_formats().names()));
  return options;
}

std::vector<models::Int8Migration> migration_from(const io::Json& root, const std::string& name) {
  std::vector<models::Int8Migration> migration;
  const io::Json* section = root.find("int8_migration");
  if (section == nullptr)
    return migration;
  if (!section->is_object())
    throw DataError(name + ": int8_migration: expected an object, found " +
                    std::string(section->type_name()) + ". Copy the adapter folder again.");
  const io::JsonReader reader(*section, name + ": int8_migration");
  for (const auto& [linear, exponents] : section->as_object())
    migration.push_back({linear, reader.string(linear)});
  return migration;
}

quant::KeptForm kept_form(const std::string& word, const std::string& name) {
  if (!quant::kept_forms().contains(word))
    throw DataError(name + ": merge_aware_weights: unknown '" + word + "'" +
                    known_names_hint(word, quant::kept_forms().names()));
  return quant::kept_forms().at(word);
}

}  // namespace

io::Json to_json(const Provenance& provenance) {
  io::Json quantization = io::Json::object();
  quantization.set("method", provenance.quantization.method);
  if (const std::string& method = provenance.quantization.method;
      method == "nf4" || method == "fp4") {
    quantization.set("block_size", provenance.quantization.block_size);
    quantization.set("double_quant", provenance.quantization.double_quant);
  }
  io::Json json = io::Json::object();
  json.set("format_version", provenance.merge_aware ? kFormatVersion : 1);
  json.set("base_model", provenance.base_model);
  json.set("base_sha256", provenance.base_sha256);
  json.set("quantization", std::move(quantization));
  json.set("compute_dtype", provenance.compute_dtype);
  if (!provenance.int8_migration.empty()) {
    io::Json migration = io::Json::object();
    for (const models::Int8Migration& linear : provenance.int8_migration)
      migration.set(linear.linear, linear.exponents);
    json.set("int8_migration", std::move(migration));
  }
  if (provenance.merge_aware)
    json.set("merge_aware_weights", quant::name_of(*provenance.merge_aware));
  json.set("chat_template", provenance.chat_template);
  json.set("trained_steps", provenance.trained_steps);
  return json;
}

std::optional<Provenance> read_provenance(const std::filesystem::path& adapter_folder) {
  const std::filesystem::path path = adapter_folder / kProvenanceFile;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    return std::nullopt;
  const std::string name = path.string();
  const io::Json root = io::read_json_file(name);
  if (!root.is_object())
    throw DataError(name + ": expected an object, found " + std::string(root.type_name()) +
                    ". Copy the adapter folder again.");
  const io::JsonReader reader(root, name);
  const int64_t version = reader.integer("format_version");
  if (version > kFormatVersion)
    throw UnsupportedError(name + ": format_version: expected at most " +
                           std::to_string(kFormatVersion) + ", found " + std::to_string(version) +
                           ". Use a newer shardtune.");
  Provenance result;
  result.base_model = reader.string_or("base_model", "");
  result.base_sha256 = reader.string("base_sha256");
  result.quantization = quantization_from(root, name);
  result.compute_dtype = reader.string_or("compute_dtype", "");
  result.int8_migration = migration_from(root, name);
  if (root.find("merge_aware_weights") != nullptr)
    result.merge_aware = kept_form(reader.string("merge_aware_weights"), name);
  result.chat_template = reader.string_or("chat_template", "");
  result.trained_steps = reader.integer_or("trained_steps", 0);
  return result;
}

void check_base(const Provenance& provenance, const std::string& adapter_folder,
                const std::string& model, const std::string& model_sha256) {
  if (provenance.base_sha256 == model_sha256)
    return;
  throw DataError(adapter_folder + ": expected the base model it was trained on, '" +
                  provenance.base_model + "' (sha256 " + provenance.base_sha256.substr(0, 16) +
                  "...), found '" + model + "' (sha256 " + model_sha256.substr(0, 16) +
                  "...). Give the same base with --model.");
}

}  // namespace shardtune::exporting
