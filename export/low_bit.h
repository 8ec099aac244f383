// Linears of a merged model in 4 or 8 bits, as transformers saves what bitsandbytes quantised.
// Codes that were trained with are written as they are; other merged weights are quantised here.
#pragma once

#include <string>
#include <vector>

#include "export/exporter.h"
#include "export/merged_tensors.h"
#include "io/tensor_writing.h"

namespace shardtune::exporting {

class LowBitLinears {
 public:
  /// Errors  ConfigError: a merge-aware adapter of another format or onto another base
  ///         UnsupportedError: a family whose linears files hold as [in, out]
  LowBitLinears(const ExportRequest& request, const MergedTensors& merged);

  /// Whether the weight's codes are those of the loaded base.
  bool is_kept(const MergedTensor& tensor) const;
  /// Whether every linear's are: then what is written computes as what was loaded.
  bool keeps_all() const;

  /// The parts of one linear's weight, each with its bytes.
  struct Part {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  /// Adds to `error` where the weight is quantised here and has a change.
  std::vector<Part> encode(const MergedTensor& tensor, DeltaError* error) const;
  /// The same without bytes.
  std::vector<Part> layout(const MergedTensor& tensor) const;

  /// quantization_config of config.json.
  io::Json config_json() const;

 private:
  std::vector<Part> parts_of(const MergedTensor& tensor, const quant::FrozenWeight& weight,
                             ParameterStore& store) const;
  Part state_of(const MergedTensor& tensor, float nested_offset) const;

  const ExportRequest& request_;
  const MergedTensors& merged_;
  quant::QuantizationOptions options_;
};

}  // namespace shardtune::exporting
