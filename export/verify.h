// Checks of merged weights that were written: every tensor byte by byte, and the logits of a short
// prompt from the merged model against base + adapter.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "export/exporter.h"
#include "io/tensor_source.h"

namespace shardtune::exporting {

/// CRC-32C and size of what was handed to the writer, by tensor name.
struct WrittenTensor {
  uint32_t crc = 0;
  int64_t num_bytes = 0;
};

/// CorruptBlockError naming the tensor when the source read back from `path` does not hold exactly
/// these bytes.
void compare_tensors(const io::TensorSource& source, const std::filesystem::path& path,
                     const std::map<std::string, WrittenTensor>& written);

struct LogitsDifference {
  double max_difference = 0.0;
  double relative_rms = 0.0;  // RMS of the difference / RMS of the logits around their mean
  double tolerance = 0.0;     // on relative_rms; 0: not checked (another base)
};

/// For compare_logits(): the difference is measured and not judged.
inline constexpr double kNotJudged = -1.0;

/// Loads the merged model from `path` and compares last-position logits. `rounding` is the error of
/// a stored weight relative to its size, as a standard deviation.
/// Errors  CorruptBlockError: relative_rms above the tolerance
LogitsDifference compare_logits(const ExportRequest& request, const std::filesystem::path& path,
                                double rounding);

}  // namespace shardtune::exporting
