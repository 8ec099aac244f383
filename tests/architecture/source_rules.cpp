#include "tests/architecture/source_rules.h"

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>

namespace shardtune::architecture {
namespace {

struct Row {
  std::string folder;
  std::string may_include;  // separated by spaces; the folder itself is always allowed
};

// The table of docs/architecture.md, from the ground up.
const std::vector<Row>& table() {
  static const std::vector<Row> rows = {
      {"core", ""},
      {"io", "core"},
      {"kernels", "core"},
      {"autograd", "core kernels"},
      {"quant", "core io kernels autograd"},
      {"sparsity", "core io kernels autograd quant"},
      {"optim", "core io kernels quant"},
      {"parallel", "core io kernels"},
      {"data", "core io"},
      {"models", "core io kernels autograd quant sparsity"},
      {"adapters", "core io kernels autograd quant models"},
      {"objectives", "core kernels autograd models"},
      {"inference", "core io kernels autograd quant sparsity models adapters data"},
      {"export", "core io data quant sparsity models adapters"},
      {"trainer",
       "core io kernels autograd quant sparsity optim parallel data models adapters objectives "
       "inference export"},
      {"launch", "core io data models adapters parallel inference export trainer"},
  };
  return rows;
}

// Which of our files may include a third-party header: the header's beginning, the path's pattern.
struct Door {
  std::string header;
  std::string library;
  std::string path_pattern;
};

const std::vector<Door>& doors() {
  static const std::vector<Door> entries = {
      {"dnnl", "oneDNN", R"(kernels/.*)"},
      {"oneapi/dnnl", "oneDNN", R"(kernels/.*)"},
      {"hwy/", "Highway", R"((kernels|quant|optim)/.*(\.cpp|-inl\.h))"},
      {"immintrin.h", "intrinsics", R"((core|kernels|quant|optim)/.*\.cpp)"},
      {"nmmintrin.h", "CRC-32C intrinsics", R"(io/checksum\.cpp)"},
      {"mpi.h", "MPI", R"(parallel/mpi_[^/]*)"},
      {"nccl.h", "NCCL", R"(parallel/[^/]*_communicator\.cpp)"},
      {"yaml-cpp/", "yaml-cpp", R"(io/yaml_.*)"},
      {"nlohmann/", "nlohmann-json", R"(io/.*)"},
      {"openssl/", "OpenSSL", R"(io/.*)"},
      {"liburing", "liburing", R"(io/.*)"},
      {"xxhash.h", "xxhash", R"(io/.*)"},
      {"unicode/", "ICU", R"(data/.*)"},
      {"pcre2.h", "PCRE2", R"(io/pattern\.cpp)"},
      {"Eigen/", "Eigen", R"((quant|adapters)/.*\.cpp)"},
      {"boost/program_options", "Boost.Program_options", R"(launch/.*)"},
      {"fmt/", "fmt", R"(.*\.cpp)"},
      {"spdlog/", "spdlog", R"(core/log\.cpp)"},
      {"hwloc", "hwloc", R"(core/topology\.cpp)"},
      {"omp.h", "OpenMP", R"((core/.*|kernels/gemm_onednn\.cpp))"},
      {"cuda", "CUDA", R"((core/cuda/.*|.*_cuda\.cu))"},
      {"cublas", "cuBLAS", R"((core/cuda/.*|.*_cuda\.cu))"},
      {"gtest/", "GoogleTest", R"((tests|bench)/.*)"},
  };
  return entries;
}

// Headers of the operating system; those of the C++ library have neither dot nor slash.
bool is_system_header(const std::string& header) {
  static const std::regex pattern(
      R"([a-z_0-9]+|sys/[a-z_]+\.h|linux/[a-z_]+\.h|net(inet)?/[a-z_]+\.h|arpa/inet\.h|)"
      R"((unistd|fcntl|signal|dirent|errno|sched|pthread|poll|time|termios|dlfcn|netdb|malloc|spawn|)"
      R"(cpuid|features|ifaddrs|limits|stdlib|semaphore|execinfo)\.h)");
  return std::regex_match(header, pattern);
}

struct Include {
  int line = 0;
  bool quoted = false;
  std::string header;
};

std::vector<Include> includes_of(const SourceFile& file) {
  static const std::regex pattern(R"re(^\s*#\s*include\s*(?:"([^"]*)"|<([^>]*)>))re");
  std::vector<Include> result;
  std::istringstream stream(file.text);
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    std::smatch match;
    if (std::regex_search(line, match, pattern))
      result.push_back({number, match[1].matched, match[1].matched ? match[1] : match[2]});
  }
  return result;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

std::string at(const SourceFile& file, int line) {
  return file.path + ":" + std::to_string(line) + ": ";
}

const Row* row_of(const std::string& folder) {
  for (const Row& row : table()) {
    if (row.folder == folder)
      return &row;
  }
  return nullptr;
}

bool contains_word(const std::string& words, const std::string& word) {
  return (" " + words + " ").find(" " + word + " ") != std::string::npos;
}

const Door* door_of(const std::string& header) {
  for (const Door& door : doors()) {
    if (header.rfind(door.header, 0) == 0)
      return &door;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> folders() {
  std::vector<std::string> names;
  for (const Row& row : table())
    names.push_back(row.folder);
  return names;
}

Complaints check_folder_includes(const SourceFile& file) {
  Complaints complaints;
  const std::string folder = folder_of(file.path);
  const Row* row = row_of(folder);
  if (row == nullptr)
    return complaints;  // tests/ and bench/ may include anything
  for (const Include& include : includes_of(file)) {
    if (!include.quoted)
      continue;
    const std::string target = folder_of(include.header);
    if (row_of(target) == nullptr) {
      complaints.push_back(at(file, include.line) + "\"" + include.header +
                           "\": a quoted include starts with a folder of the table; write it from "
                           "the root, and third-party headers in <>");
    } else if (target != folder && !contains_word(row->may_include, target)) {
      complaints.push_back(
          at(file, include.line) + folder + "/ may not include " + target +
          "/; it may include: " + (row->may_include.empty() ? "nothing" : row->may_include));
    }
  }
  return complaints;
}

Complaints check_third_party_includes(const SourceFile& file) {
  Complaints complaints;
  if (row_of(folder_of(file.path)) == nullptr)
    return complaints;
  for (const Include& include : includes_of(file)) {
    if (include.quoted)
      continue;
    if (const Door* door = door_of(include.header)) {
      if (!std::regex_match(file.path, std::regex(door->path_pattern)))
        complaints.push_back(at(file, include.line) + door->library +
                             " is included only by files matching " + door->path_pattern);
    } else if (!is_system_header(include.header)) {
      complaints.push_back(at(file, include.line) + "<" + include.header +
                           "> is neither of the standard library nor a known dependency; add a "
                           "door in tests/architecture and a row in docs/dependencies.md");
    }
  }
  return complaints;
}

Complaints check_private_headers(const std::vector<SourceFile>& files) {
  // A header is private when it shows a third-party header, itself or through another of ours.
  std::map<std::string, std::string> private_headers;  // path -> what it shows
  bool changed = true;
  while (changed) {
    changed = false;
    for (const SourceFile& file : files) {
      if (!file.path.ends_with(".h") || private_headers.contains(file.path))
        continue;
      for (const Include& include : includes_of(file)) {
        const bool shows = include.quoted
                               ? private_headers.contains(include.header)
                               : door_of(include.header) != nullptr && include.header != "omp.h";
        if (shows) {
          private_headers[file.path] = include.header;
          changed = true;
          break;
        }
      }
    }
  }
  Complaints complaints;
  for (const SourceFile& file : files) {
    for (const Include& include : includes_of(file)) {
      const auto header = private_headers.find(include.header);
      if (header != private_headers.end() && folder_of(header->first) != folder_of(file.path))
        complaints.push_back(at(file, include.line) + header->first + " shows <" + header->second +
                             ">, so only its own folder may include it");
    }
  }
  return complaints;
}

Complaints check_shape(const SourceFile& file) {
  static const std::regex open_end(std::string(R"(\b(TO)") + "DO|FIX" + R"(ME)\b)");
  static const std::regex conditional(R"(^\s*#\s*(ifdef|ifndef|if\s+!?\s*defined))");
  // Highway's own idiom, and the instruction set of the compilation, which is no feature of ours.
  static const std::regex allowed(R"(HWY_|_INL_H_|__x86_64__|__SSE4_2__)");
  Complaints complaints;
  const std::string folder = folder_of(file.path);
  std::istringstream stream(file.text);
  std::string line;
  int number = 0;
  while (std::getline(stream, line)) {
    ++number;
    if (std::regex_search(line, open_end))
      complaints.push_back(at(file, number) + "what is open stands in docs/status.md");
    if (row_of(folder) != nullptr && folder != "core" && std::regex_search(line, conditional) &&
        !std::regex_search(line, allowed))
      complaints.push_back(at(file, number) +
                           "conditional compilation belongs to core/ and cmake/");
  }
  if (number > 500)
    complaints.push_back(at(file, number) + "more than 500 lines; make it two files");
  return complaints;
}

}  // namespace shardtune::architecture
