// Linears of a checkpoint that bitsandbytes quantised, as transformers saves it: NF4 and FP4 codes
// with absmax in fp32 or doubly quantised, int8 rows with their absmax (SCB). They are read as the
// fp32 values that the codes stand for.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_source.h"
#include "quant/nf4.h"

namespace shardtune::models {

class LowBitTensors {
 public:
  /// Finds the quantised weights of a file and checks the sizes of their parts; `tensors` lives
  /// longer.
  /// Errors  DataError: parts that are missing or do not fit; UnsupportedError: a table, nested
  ///         block or type that bitsandbytes does not write by itself
  explicit LowBitTensors(const io::TensorSource& tensors);

  struct Weight {
    std::string format;  // "nf4", "fp4", "int8"
    std::vector<int64_t> shape;
    const io::TensorInfo* codes = nullptr;
    const io::TensorInfo* absmax = nullptr;  // of int8 SCB
    const io::TensorInfo* nested = nullptr;  // nested_absmax; null: absmax is fp32
    float nested_offset = 0.0f;
    int64_t block_size = 0;
  };
  /// Under the weight's name in the file; null: it is no quantised one.
  const Weight* find(std::string_view name) const;
  /// Rows [begin, end), as their codes decode.
  void read_rows(const Weight& weight, int64_t begin, int64_t end, float* out) const;

 private:
  void add_four_bit(const io::TensorInfo& state, std::string_view weight);
  void add_int8(const io::TensorInfo& absmax, std::string_view module);
  const io::TensorInfo& part(const std::string& name, std::string_view dtype, int64_t numel) const;
  void read_four_bit(const Weight& weight, int64_t begin, int64_t end, float* out) const;

  const io::TensorSource& tensors_;
  std::map<std::string, Weight, std::less<>> weights_;
};

}  // namespace shardtune::models
