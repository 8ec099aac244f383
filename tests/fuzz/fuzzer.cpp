// The libFuzzer program of all parsers; the environment's SHARDTUNE_FUZZ_PARSER says which. Every
// input gives a typed error or a success, within a second of processor time. Memory is bounded by
// libFuzzer's own options.
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "core/error.h"
#include "core/parallel_for.h"
#include "tests/fuzz/parsers.h"

namespace shardtune::fuzz {
namespace {

constexpr double kMaxSeconds = 1.0;

const Parser& chosen() {
  const char* const name = std::getenv("SHARDTUNE_FUZZ_PARSER");
  for (const Parser& parser : parsers()) {
    if (name != nullptr && parser.name == name)
      return parser;
  }
  std::fprintf(stderr, "SHARDTUNE_FUZZ_PARSER: expected a parser of tests/fuzz/parsers.cpp\n");
  std::exit(64);
}

/// The file of this process that inputs are written to.
std::filesystem::path input_file() {
  std::string folder = (std::filesystem::temp_directory_path() / "fuzz_input_XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr)
    std::abort();
  static const std::filesystem::path kFolder = folder;
  std::atexit([] {
    std::error_code ignored;
    std::filesystem::remove_all(kFolder, ignored);
  });
  set_num_threads(1);
  return kFolder / chosen().file_name;
}

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace
}  // namespace shardtune::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace shardtune::fuzz;
  static const Parser& parser = chosen();
  static const std::filesystem::path file = input_file();
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  const double start = processor_seconds();
  try {
    parser.read(file);
  } catch (const shardtune::Error&) {
  }
  if (const double seconds = processor_seconds() - start; seconds > kMaxSeconds) {
    std::fprintf(stderr, "this input took %.2f s of processor time\n", seconds);
    std::abort();
  }
  return 0;
}
