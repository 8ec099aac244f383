// The parsers that read files of strangers, each as one function of a file: what the fuzzers call
// and what the seed files are fed to.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace shardtune::fuzz {

struct Parser {
  std::string_view name;       // also its folder in tests/fuzz/seeds
  std::string_view file_name;  // what the file must be called
  /// Reads the file and uses what it holds as the program would; throws shardtune::Error alone.
  void (*read)(const std::filesystem::path& file);
};

std::span<const Parser> parsers();

}  // namespace shardtune::fuzz
