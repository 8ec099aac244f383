#include "core/topology.h"

#include <hwloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string_view>
#include <vector>

#include "core/instruction_set.h"

namespace shardtune {
namespace {

std::optional<std::vector<int>> cpus_of(pid_t process) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(process, sizeof mask, &mask) != 0)
    return std::nullopt;
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask))
      cpus.push_back(cpu);
  }
  return cpus;
}

bool set_cpus(const std::vector<int>& cpus) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  for (const int cpu : cpus)
    CPU_SET(cpu, &mask);
  return sched_setaffinity(0, sizeof mask, &mask) == 0;
}

/// What mpirun or its daemon, our parent, may use; absent when something else started us.
std::optional<std::vector<int>> launcher_cpus() {
  std::ifstream file("/proc/" + std::to_string(getppid()) + "/comm");
  std::string name;
  std::getline(file, name);
  for (const std::string_view launcher : {"mpirun", "mpiexec", "orterun", "orted", "prted"}) {
    if (name == launcher)
      return cpus_of(getppid());
  }
  return std::nullopt;
}

std::vector<int> share_of(const std::vector<int>& cpus, int local_rank, int local_size) {
  const size_t count = cpus.size();
  const auto rank = static_cast<size_t>(local_rank);
  const auto ranks = static_cast<size_t>(local_size);
  if (count < ranks)
    return {cpus[rank % count]};
  return {cpus.begin() + static_cast<std::ptrdiff_t>(count * rank / ranks),
          cpus.begin() + static_cast<std::ptrdiff_t>(count * (rank + 1) / ranks)};
}

std::string line_value(const char* file, std::string_view key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    if (!line.starts_with(key))
      continue;
    const size_t colon = line.find(':');
    return colon + 2 <= line.size() ? line.substr(colon + 2) : "";
  }
  return "";
}

}  // namespace

int num_usable_cores() {
  const auto cpus = cpus_of(0);
  if (!cpus || cpus->empty())
    return 1;
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0)
    return static_cast<int>(cpus->size());
  int num_cores = 0;
  if (hwloc_topology_load(topology) == 0) {
    for (hwloc_obj_t core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, nullptr);
         core != nullptr; core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core)) {
      num_cores += std::any_of(cpus->begin(), cpus->end(), [&](int cpu) {
        return hwloc_bitmap_isset(core->cpuset, static_cast<unsigned>(cpu)) != 0;
      });
    }
  }
  hwloc_topology_destroy(topology);
  return num_cores > 0 ? num_cores : static_cast<int>(cpus->size());
}

Placement widen_inherited_mask(int local_rank, int local_size) {
  const auto own = cpus_of(0).value_or(std::vector<int>{0});
  Placement placement{MaskChange::kNone, static_cast<int>(own.size())};
  const auto cpus = launcher_cpus();
  if (!cpus || cpus->empty() || local_rank < 0 || local_rank >= local_size)
    return placement;
  if (std::getenv("OMPI_MCA_hwloc_base_binding_policy") != nullptr) {
    placement.change = MaskChange::kBound;
    return placement;
  }
  const std::vector<int> share = share_of(*cpus, local_rank, local_size);
  if (share.size() <= own.size() || !set_cpus(share))
    return placement;
  return {MaskChange::kWidened, static_cast<int>(share.size())};
}

std::string cpu_model() { return line_value("/proc/cpuinfo", "model name"); }

std::string cpu_features() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  std::string text;
  const auto add = [&](bool has, const char* name) {
    if (has)
      text += (text.empty() ? "" : " ") + std::string(name);
  };
  add(__builtin_cpu_supports("sse4.2"), "SSE4.2");
  add(__builtin_cpu_supports("avx2"), "AVX2");
  add(__builtin_cpu_supports("avx512f"), "AVX-512");
  add(__builtin_cpu_supports("avx512vnni"), "AVX512-VNNI");
  // GCC 12 does not ask the processor for these two.
  const std::string flags = " " + line_value("/proc/cpuinfo", "flags") + " ";
  add(flags.find(" avx512_bf16 ") != std::string::npos, "AVX512-BF16");
  add(flags.find(" amx_bf16 ") != std::string::npos, "AMX-BF16");
  // What a limit leaves is a prefix.
  switch (instruction_set_limit()) {
    case InstructionSet::kBaseline:
      return text.substr(0, text.find(" AVX2"));
    case InstructionSet::kAvx2:
      return text.substr(0, text.find(" AVX-512"));
    case InstructionSet::kAvx512:
      return text.substr(0, std::min(text.find(" AVX512-BF16"), text.find(" AMX-BF16")));
    case InstructionSet::kNative:
      break;
  }
  return text;
#else
  return "";
#endif
}

long long usable_memory_bytes() {
  long long bytes = static_cast<long long>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  for (const char* file :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream in(file);
    long long limit = 0;
    if (in >> limit && limit > 0)
      bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace shardtune
