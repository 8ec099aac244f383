// What `export` can write, by name: one file and one line of registry.cpp per format.
#pragma once

#include <functional>
#include <string>

#include "adapters/adapter.h"
#include "core/registry.h"
#include "data/tokenizer.h"
#include "export/output_folder.h"
#include "export/provenance.h"
#include "models/model.h"

namespace shardtune::exporting {

/// Which base a delta is added to: the one trained on (dequantised), or the original tensors.
enum class MergeBase { kTrained, kOriginal };

struct ExportOptions {
  DType dtype = DType::kBFloat16;  // of merged weights: kBFloat16 | kFloat32
  std::string low_bit;             // of linears, if not dtype: nf4 | fp4 | int8
  std::string gguf_type = "F16";   // of a GGUF file's matrices: F32 | F16 | BF16 | Q8_0 | keep
  MergeBase merge_base = MergeBase::kTrained;
  int64_t max_shard_bytes = 50'000'000'000;  // as transformers 5
};

/// Loads a model as stored, in the compute dtype of the one exported, into a store of its own; it
/// lives as long as the request.
using LoadBack = std::function<models::Model&(const models::ModelSource& source)>;

/// What is exported. model holds the base as it was trained on; the adapter is attached to it.
struct ExportRequest {
  models::Model& model;
  const models::ModelSource& source;
  adapters::Adapter* adapter = nullptr;        // null: the base alone
  const data::Tokenizer* tokenizer = nullptr;  // null: the model has none that we read
  Provenance provenance;                       // of the adapter, or of the base as loaded
  ExportOptions options;
  LoadBack load_back;  // for the check of a merged model
};

/// Writes into output.partial(), reads it back, and returns a report; the caller commits.
using Exporter = io::Json (*)(const ExportRequest& request, const OutputFolder& output);

/// "hf", "peft", "gguf", "gguf-lora".
const Registry<Exporter>& exporters();

io::Json export_hf(const ExportRequest& request, const OutputFolder& output);
io::Json export_peft(const ExportRequest& request, const OutputFolder& output);
io::Json export_gguf(const ExportRequest& request, const OutputFolder& output);
io::Json export_gguf_lora(const ExportRequest& request, const OutputFolder& output);

}  // namespace shardtune::exporting
