// Rows of tests/golden/optim: a word, then fp32 bit patterns in hexadecimal.
#pragma once

#include <bit>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace shardtune::optim {

inline std::ifstream open_golden(const std::string& name) {
  return std::ifstream(std::string(SHARDTUNE_SOURCE_DIR) + "/tests/golden/optim/" + name);
}

/// Reads hexadecimal words until something else comes.
inline std::vector<float> read_floats(std::istream& stream) {
  std::vector<float> values;
  std::string word;
  while (stream >> std::ws && stream.good()) {
    const auto position = stream.tellg();
    stream >> word;
    if (word.size() != 8 || word.find_first_not_of("0123456789abcdef") != std::string::npos) {
      stream.seekg(position);
      break;
    }
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(std::stoul(word, nullptr, 16))));
  }
  return values;
}

}  // namespace shardtune::optim
