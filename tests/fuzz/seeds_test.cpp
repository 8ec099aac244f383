// Every seed file gives what seeds/expected.tsv says: a success, or an error of that class whose
// message has that part; and takes little memory. tests/fuzz/make_seeds.py makes the files.
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <new>
#include <sstream>

#include "core/error.h"
#include "tests/fuzz/parsers.h"

namespace {

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};

[[gnu::noinline]] void* counted(std::size_t size) {
  void* const memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr)
    throw std::bad_alloc();
  const int64_t now = live_bytes += static_cast<int64_t>(malloc_usable_size(memory));
  int64_t peak = peak_bytes;
  while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
  return memory;
}

// std::stable_sort asks this way; where it is left to a sanitizer, delete does not match it.
[[gnu::noinline]] void* counted_or_null(std::size_t size) noexcept {
  try {
    return counted(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

[[gnu::noinline]] void give_back(void* memory) {
  if (memory != nullptr)
    live_bytes -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted_or_null(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return counted_or_null(size);
}
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete[](void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give_back(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { give_back(memory); }

namespace shardtune::fuzz {
namespace {

namespace fs = std::filesystem;

/// Far above what any seed needs, far below what its numbers ask for.
constexpr int64_t kMaxBytes = 64ll << 20;

const fs::path kSeeds = fs::path(SHARDTUNE_SOURCE_DIR) / "tests/fuzz/seeds";

struct Expected {
  int code = 0;  // 0: read without an error
  std::string part;
};

std::map<std::string, Expected> expected_outcomes() {
  std::map<std::string, Expected> all;
  std::ifstream file(kSeeds / "expected.tsv");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string seed, code, part;
    std::getline(fields, seed, '\t');
    std::getline(fields, code, '\t');
    std::getline(fields, part);
    all[seed] = {std::stoi(code), part};
  }
  return all;
}

/// The seed under the name that its parser wants, in a folder of its own.
class Copy {
 public:
  Copy(const fs::path& seed, std::string_view file_name) {
    std::string name = (fs::temp_directory_path() / "shardtune_seed_XXXXXX").string();
    folder_ = mkdtemp(name.data());
    fs::copy_file(seed, path_ = folder_ / file_name);
  }
  ~Copy() { fs::remove_all(folder_); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path folder_, path_;
};

void expect_outcome(const Parser& parser, const fs::path& seed, const Expected& expected) {
  const Copy copy(seed, parser.file_name);
  const int64_t before = live_bytes;
  peak_bytes = before;
  int code = 0;
  std::string message;
  try {
    parser.read(copy.path());
  } catch (const Error& error) {
    code = static_cast<int>(error.exit_code());
    message = error.what();
  }
  EXPECT_EQ(code, expected.code) << seed << ": " << message;
  EXPECT_NE(message.find(expected.part), std::string::npos)
      << seed << ": expected '" << expected.part << "' in: " << message;
  EXPECT_LT(message.size(), 4000u) << seed;
  EXPECT_LT(peak_bytes - before, kMaxBytes) << seed;
  if (std::getenv("SHARDTUNE_PRINT_SEEDS") != nullptr)
    std::printf("%s/%s\t%d\t%s\n", std::string(parser.name).c_str(),
                seed.filename().string().c_str(), code, message.c_str());
}

TEST(FuzzSeeds, EachGivesItsErrorAndTakesLittleMemory) {
  const auto expected = expected_outcomes();
  size_t num_seeds = 0;
  std::map<std::string_view, size_t> per_parser;
  for (const Parser& parser : parsers()) {
    for (const fs::directory_entry& entry : fs::directory_iterator(kSeeds / parser.name)) {
      const std::string name = std::string(parser.name) + "/" + entry.path().filename().string();
      ++num_seeds;
      ++per_parser[parser.name];
      const auto found = expected.find(name);
      if (found == expected.end())
        ADD_FAILURE() << name << " has no line in expected.tsv";
      expect_outcome(parser, entry.path(), found == expected.end() ? Expected{} : found->second);
    }
  }
  EXPECT_EQ(num_seeds, expected.size());
  EXPECT_GE(per_parser["yaml"], 200u);  // R5
  EXPECT_GE(per_parser["json"], 100u);  // R6
}

}  // namespace
}  // namespace shardtune::fuzz
