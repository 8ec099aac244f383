// For readers_test.py: reads names of safetensors files from standard input and answers each with a
// line: its tensors as `inspect --json` shows them, or the exit code of the error.
#include <cstdio>
#include <iostream>
#include <string>

#include "core/error.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace {

using shardtune::io::Json;

std::string answer(const std::string& path) {
  Json list = Json::array();
  const auto source = shardtune::io::open_safetensors(path);
  for (const auto& tensor : source->tensors()) {
    Json shape = Json::array();
    for (const int64_t extent : tensor.shape)
      shape.push_back(extent);
    Json entry = Json::object();
    entry.set("name", tensor.name);
    entry.set("dtype", tensor.dtype);
    entry.set("shape", std::move(shape));
    entry.set("bytes", tensor.num_bytes);
    list.push_back(std::move(entry));
  }
  return list.dump();
}

}  // namespace

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    std::string line;
    try {
      line = answer(path);
    } catch (const shardtune::Error& error) {
      line = std::to_string(static_cast<int>(error.exit_code()));
    }
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }
  return 0;
}
