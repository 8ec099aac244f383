// shardtune.json of an adapter folder: what the adapter was trained on. PEFT ignores the file;
// eval, generate and export read it for the base's hash, its quantization and the chat template.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "io/json.h"
#include "models/int8_linears.h"
#include "quant/frozen_weight.h"
#include "quant/kept_weight.h"

namespace shardtune::exporting {

inline constexpr const char* kProvenanceFile = "shardtune.json";
/// Beside merged weights: what they were made from.
inline constexpr const char* kExportReportFile = "shardtune_export.json";

struct Provenance {
  std::string base_model;   // path as the run was given it
  std::string base_sha256;  // ModelSource::content_hash()
  quant::QuantizationOptions quantization;
  std::string compute_dtype;                          // "float32" | "bfloat16" | "int8"
  std::vector<models::Int8Migration> int8_migration;  // with int8
  std::string chat_template;                          // name of the registry, "" when none was used
  std::optional<quant::KeptForm> merge_aware;         // set: trained with Q(W + change), W kept so
  int64_t trained_steps = 0;
};

io::Json to_json(const Provenance& provenance);
/// nullopt when the folder has no shardtune.json (an adapter of another tool).
/// Errors  DataError: the file is there but damaged; UnsupportedError: a newer format_version
std::optional<Provenance> read_provenance(const std::filesystem::path& adapter_folder);

/// DataError naming both models when the adapter was trained on another base.
void check_base(const Provenance& provenance, const std::string& adapter_folder,
                const std::string& model, const std::string& model_sha256);

}  // namespace shardtune::exporting
