// The part of a GGUF file before its tensor data, parsed and checked.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/tensor_table.h"

namespace shardtune::io {

struct GgufContents {
  /// Where type and value of a pair stand in the file.
  struct Pair {
    std::string key;
    int64_t begin = 0;
    int64_t end = 0;
  };
  std::vector<Pair> pairs;  // in the file's order
  std::map<std::string, GgufValue, std::less<>> metadata;
  TensorTable tensors;
};

/// DataError "name: byte N: ..." for anything the format forbids.
GgufContents parse_gguf(const std::string& name, std::span<const std::byte> bytes);

}  // namespace shardtune::io
