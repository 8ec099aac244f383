// Tokenising on one thread: lines of real files (B17), and repeated units at two lengths (R8).
//   tokenizer_bench MODEL[,MODEL...] TEXT_FILE[,TEXT_FILE...] [google-benchmark flags]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "data/tokenizer.h"
#include "tests/data/repeated_units.h"

namespace {

using namespace shardtune::data;

std::vector<std::string> names_of(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');)
    names.push_back(name);
  return names;
}

std::string short_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

void encode_lines(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  int64_t num_ids = 0;
  for (auto unused : state) {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      num_ids += static_cast<int64_t>(
          tokenizer.encode(std::string_view(text).substr(begin, end - begin), {}).size());
      begin = end + 1;
    }
  }
  benchmark::DoNotOptimize(num_ids);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}

void encode_unit(benchmark::State& state, const Tokenizer& tokenizer, const std::string& unit) {
  std::string text;
  while (static_cast<int64_t>(text.size()) < state.range(0))
    text += unit;
  for (auto unused : state)
    benchmark::DoNotOptimize(tokenizer.encode(text, {}));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc < 3)
    return 64;
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (const std::string& model : names_of(argv[1])) {
    tokenizers.push_back(load_tokenizer(model));
    const Tokenizer& tokenizer = *tokenizers.back();
    for (const std::string& path : names_of(argv[2])) {
      std::ifstream file(path, std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      benchmark::RegisterBenchmark(
          ("lines/" + short_name(model) + "/" + short_name(path)).c_str(),
          [&tokenizer, text](benchmark::State& state) { encode_lines(state, tokenizer, text); })
          ->Unit(benchmark::kMillisecond);
    }
    int index = 0;
    for (const std::string& unit : shardtune::testing::repeated_units())
      benchmark::RegisterBenchmark(
          ("unit/" + short_name(model) + "/" + std::to_string(index++)).c_str(),
          [&tokenizer, unit](benchmark::State& state) { encode_unit(state, tokenizer, unit); })
          ->Arg(100'000)
          ->Arg(10'000'000)
          ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
