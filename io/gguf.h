// GGUF files (llama.cpp): metadata and tensors. Shapes are given row-major, so GGUF's dims[0], the
// fastest, comes last. Tensor bytes stay as in the file: q/k of "llama" are still permuted.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "io/file.h"
#include "io/gguf_write.h"
#include "io/tensor_source.h"

namespace shardtune::io {

/// A metadata value; integers of every width are int64 (u64 above int64 max is a DataError), both
/// float widths are double. Nested arrays are refused (no known key has one).
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<bool>, std::vector<std::string>>;

class GgufFile : public TensorSource {
 public:
  virtual const std::map<std::string, GgufValue, std::less<>>& metadata() const = 0;
  virtual const std::string& path() const = 0;
  /// The metadata as it stands in the file, in its order.
  virtual std::vector<GgufPair> pairs() const = 0;

  // Typed metadata; DataError naming file and key when absent (without _or) or of another type.
  int64_t integer(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t otherwise) const;
  double number(std::string_view key) const;
  double number_or(std::string_view key, double otherwise) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  std::string string(std::string_view key) const;
  std::string string_or(std::string_view key, std::string_view otherwise) const;
  /// nullptr when absent.
  const std::vector<std::string>* strings(std::string_view key) const;
  const std::vector<int64_t>* integers(std::string_view key) const;
  const std::vector<double>* numbers(std::string_view key) const;
};

/// Errors  MissingInputError: no file; DataError: damaged (message with byte offset)
/// Decoders: those of decodable_gguf_types(); other types open but read_float32 refuses them.
std::unique_ptr<GgufFile> open_gguf(const fs::path& path);

}  // namespace shardtune::io
