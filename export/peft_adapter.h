// An adapter as PEFT 0.21.2 loads it: adapter_config.json, adapter_model.safetensors (fp32, keys
// "base_model.model.<name>"), README.md; and beside them shardtune.json. Bottleneck adapters as
// AdapterHub's adapters 1.3.0 does.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "adapters/adapter.h"
#include "core/parameter_store.h"
#include "export/output_folder.h"
#include "export/provenance.h"

namespace shardtune::exporting {

/// The whole values of a trainable that a saved tensor is made of.
using AdapterValues = std::function<std::vector<float>(ParameterId id)>;
/// Values leased from a store that holds them on this rank.
AdapterValues values_of(ParameterStore& store);
std::vector<float> values_of_saved(const adapters::SavedTensor& tensor,
                                   const AdapterValues& values);
/// NaN is refused, and so is an adapter of zeros only: both are signs that nothing was trained.
void check_values(const std::vector<adapters::SavedTensor>& saved, const AdapterValues& values);

/// What the folder holds beside the tensors' values.
struct AdapterFiles {
  std::vector<adapters::SavedTensor> tensors;
  io::Json config;  // adapter_config.json
  std::string method;
  adapters::AdapterFolder folder = adapters::kPeftFolder;
};
/// Writes the files into output.partial(), reads them back and compares.
void write_adapter_files(const AdapterFiles& files, const AdapterValues& values,
                         const Provenance& provenance, const OutputFolder& output);

/// Writes the folder through a partial one: files are fsynced, read back and compared, then the
/// folder is renamed. One rank calls it.
/// Errors  WriteError: not writable, disk full; ConfigError: the folder is in use (kRefuse);
///         NonFiniteError: NaN or infinity in a tensor; CorruptBlockError: read back different
void write_peft_adapter(const adapters::Adapter& adapter, const AdapterValues& values,
                        const std::filesystem::path& folder, const Provenance& provenance,
                        Existing existing);

}  // namespace shardtune::exporting
