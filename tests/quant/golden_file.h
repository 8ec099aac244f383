// Reads tests/golden/bitsandbytes/golden.bin (format in make_golden.py beside it).
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace shardtune::quant {

struct GoldenTensor {
  DType dtype = DType::kUInt8;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  template <typename T>
  std::vector<T> as() const {
    SHARDTUNE_ASSERT(DTypeOf<T>::value == dtype);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  /// f32, or bf16 widened.
  std::vector<float> floats() const {
    if (dtype == DType::kFloat32)
      return as<float>();
    const std::vector<BFloat16> values = as<BFloat16>();
    return {values.begin(), values.end()};
  }
};

using Golden = std::map<std::string, GoldenTensor>;

inline const Golden& golden() {
  static const Golden tensors = [] {
    std::ifstream file(SHARDTUNE_SOURCE_DIR "/tests/golden/bitsandbytes/golden.bin",
                       std::ios::binary);
    const auto read_u32 = [&] {
      uint32_t value = 0;
      file.read(reinterpret_cast<char*>(&value), sizeof(value));
      return value;
    };
    Golden result;
    while (file.peek() != std::ifstream::traits_type::eof()) {
      std::string name(read_u32(), '\0');
      file.read(name.data(), static_cast<std::streamsize>(name.size()));
      constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kUInt8, DType::kInt8};
      GoldenTensor tensor;
      tensor.dtype = kDTypes[file.get()];
      tensor.shape.resize(read_u32());
      int64_t numel = 1;
      for (int64_t& extent : tensor.shape)
        numel *= extent = read_u32();
      tensor.bytes.resize(static_cast<size_t>(numel * size_of(tensor.dtype)));
      file.read(tensor.bytes.data(), static_cast<std::streamsize>(tensor.bytes.size()));
      SHARDTUNE_ASSERT(file.good());
      result.emplace(std::move(name), std::move(tensor));
    }
    return result;
  }();
  return tensors;
}

}  // namespace shardtune::quant
