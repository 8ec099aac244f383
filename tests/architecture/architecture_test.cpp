// The tree against the rules of source_rules.h, and the rules against text that breaks them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/architecture/source_rules.h"

namespace shardtune::architecture {
namespace {

namespace fs = std::filesystem;

const fs::path& root() {
  static const fs::path path = SHARDTUNE_SOURCE_DIR;
  return path;
}

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::vector<SourceFile> sources_of(const std::vector<std::string>& names) {
  std::vector<SourceFile> files;
  for (const std::string& name : names) {
    if (!fs::exists(root() / name))
      continue;
    for (const auto& entry : fs::recursive_directory_iterator(root() / name)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh")
        files.push_back(
            {entry.path().lexically_relative(root()).generic_string(), read_text(entry.path())});
    }
  }
  return files;
}

const std::vector<SourceFile>& folder_sources() {
  static const std::vector<SourceFile> files = sources_of(folders());
  return files;
}

std::string join(const Complaints& complaints) {
  std::string text;
  for (const std::string& complaint : complaints)
    text += complaint + "\n";
  return text;
}

Complaints check_all(Complaints (*rule)(const SourceFile&), const std::vector<SourceFile>& files) {
  Complaints all;
  for (const SourceFile& file : files) {
    for (std::string& complaint : rule(file))
      all.push_back(std::move(complaint));
  }
  return all;
}

TEST(SourceTree, IsThere) {
  EXPECT_GE(folder_sources().size(), 20u) << "no sources under " << root();
}

TEST(SourceTree, IncludesFollowTheFolderTable) {
  EXPECT_EQ(join(check_all(check_folder_includes, folder_sources())), "");
}

TEST(SourceTree, QuotedIncludesExist) {
  Complaints missing;
  for (const SourceFile& file : folder_sources()) {
    std::istringstream stream(file.text);
    for (std::string line; std::getline(stream, line);) {
      const std::string start = "#include \"";
      if (line.rfind(start, 0) != 0)
        continue;
      const std::string header = line.substr(start.size(), line.rfind('"') - start.size());
      if (!fs::exists(root() / header))
        missing.push_back(file.path + ": " + header);
    }
  }
  EXPECT_EQ(join(missing), "");
}

TEST(SourceTree, ThirdPartyHeadersComeThroughTheirDoor) {
  EXPECT_EQ(join(check_all(check_third_party_includes, folder_sources())), "");
}

TEST(SourceTree, PublicHeadersShowNoThirdParty) {
  EXPECT_EQ(join(check_private_headers(folder_sources())), "");
}

TEST(SourceTree, FilesAreShortAndClosed) {
  std::vector<SourceFile> files = folder_sources();
  for (SourceFile& file : sources_of({"tests", "bench"}))
    files.push_back(std::move(file));
  EXPECT_EQ(join(check_all(check_shape, files)), "");
}

TEST(SourceTree, EveryFolderHasAShortReadme) {
  for (const std::string& folder : folders()) {
    if (!fs::exists(root() / folder / "CMakeLists.txt"))
      continue;
    std::ifstream stream(root() / folder / "README.md");
    EXPECT_TRUE(stream.good()) << folder << "/README.md is not there";
    int lines = 0;
    for (std::string line; std::getline(stream, line);)
      ++lines;
    EXPECT_LE(lines, 30) << folder << "/README.md";
  }
}

size_t count(Complaints (*rule)(const SourceFile&), const std::string& path,
             const std::string& text) {
  return rule({path, text}).size();
}

TEST(SourceRules, SeeAnIncludeAgainstTheTable) {
  EXPECT_EQ(count(check_folder_includes, "models/llama.cpp", "#include \"adapters/lora.h\"\n"), 1u);
  EXPECT_EQ(count(check_folder_includes, "optim/adamw.cpp", "#include \"parallel/shard.h\"\n"), 1u);
  EXPECT_EQ(count(check_folder_includes, "core/log.cpp", "  #  include \"io/file.h\"\n"), 1u);
  EXPECT_EQ(count(check_folder_includes, "io/file.cpp", "#include \"file.h\"\n"), 1u);
  EXPECT_EQ(count(check_folder_includes, "io/file.cpp", "#include \"../core/error.h\"\n"), 1u);
  EXPECT_EQ(count(check_folder_includes, "models/llama.cpp",
                  "#include \"models/llama.h\"\n#include \"quant/frozen_weight.h\"\n"),
            0u);
  const Complaints found =
      check_folder_includes({"data/plan.cpp", "\n#include \"kernels/gemm.h\"\n"});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0], "data/plan.cpp:2: data/ may not include kernels/; it may include: core io");
}

TEST(SourceRules, SeeAThirdPartyHeaderOutsideItsDoor) {
  EXPECT_EQ(count(check_third_party_includes, "models/llama.cpp", "#include <dnnl.hpp>\n"), 1u);
  EXPECT_EQ(count(check_third_party_includes, "kernels/gemm.cpp", "#include <dnnl.hpp>\n"), 0u);
  EXPECT_EQ(count(check_third_party_includes, "parallel/shard.cpp", "#include <mpi.h>\n"), 1u);
  EXPECT_EQ(
      count(check_third_party_includes, "parallel/mpi_communicator.cpp", "#include <mpi.h>\n"), 0u);
  EXPECT_EQ(count(check_third_party_includes, "io/json.h", "#include <fmt/format.h>\n"), 1u);
  EXPECT_EQ(count(check_third_party_includes, "kernels/norm.cpp", "#include <omp.h>\n"), 1u);
  EXPECT_EQ(count(check_third_party_includes, "io/file.cpp",
                  "#include <sys/mman.h>\n#include <cstdint>\n#include <unistd.h>\n"),
            0u);
  EXPECT_EQ(count(check_third_party_includes, "io/file.cpp", "#include <zstd.h>\n"), 1u);
}

TEST(SourceRules, SeeAHeaderThatShowsAThirdParty) {
  const SourceFile shows{"kernels/primitive.h", "#include <dnnl.hpp>\n"};
  const SourceFile through{"kernels/more.h", "#include \"kernels/primitive.h\"\n"};
  const SourceFile inside{"kernels/gemm.cpp", "#include \"kernels/more.h\"\n"};
  const SourceFile outside{"quant/nf4.cpp", "#include \"kernels/more.h\"\n"};
  EXPECT_EQ(check_private_headers({shows, through, inside}).size(), 0u);
  EXPECT_EQ(check_private_headers({shows, through, outside}).size(), 1u);
}

TEST(SourceRules, SeeLongAndOpenFiles) {
  std::string text;
  for (int i = 0; i < 500; ++i)
    text += "int x;\n";
  EXPECT_EQ(count(check_shape, "io/file.cpp", text), 0u);
  EXPECT_EQ(count(check_shape, "io/file.cpp", text + "int y;\n"), 1u);
  EXPECT_EQ(count(check_shape, "io/file.cpp", std::string("// TO") + "DO later\n"), 1u);
  EXPECT_EQ(count(check_shape, "io/file.cpp", "#ifdef __AVX2__\n"), 1u);
  EXPECT_EQ(count(check_shape, "core/tensor.cpp", "#ifdef __SANITIZE_ADDRESS__\n"), 0u);
}

}  // namespace
}  // namespace shardtune::architecture
