#include "trainer/offload.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>

#include "core/log.h"
#include "io/file.h"
#include "trainer/collective.h"

namespace shardtune::trainer {
namespace {

std::unique_ptr<io::SwapFile> open_swap_file(const Job& job, const OffloadSection& offload) {
  io::SwapOptions options;
  options.folder = offload.nvme_path;
  options.rank = job.comm.rank();
  options.mode = job.swap.mode;
  options.wrap = job.swap.wrap;
  return std::make_unique<io::SwapFile>(options);
}

std::string number(double value, const char* format) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string mebibytes(int64_t bytes) {
  return number(static_cast<double>(bytes) / (1 << 20), "%.1f") + " MiB";
}

/// Takes and measures `bytes` of the file; tells speed, way of access and what is missing there
/// once, on rank 0.
void prepare(const Job& job, const char* key, io::SwapFile& file, int64_t bytes) {
  const fs::path folder = fs::path(file.path()).parent_path();
  io::require_free_space(folder, bytes, key);
  file.reserve(bytes);
  const int64_t measured = std::min(bytes, job.swap.measured_bytes);
  const io::SwapSpeed speed = measured > 0 ? file.measure(measured) : io::SwapSpeed();
  if (job.comm.rank() != 0)
    return;
  log_info(std::string(key) + ": " + folder.string() + ": " + file.description() + "; writes " +
           number(speed.write_bytes_per_second / 1e9, "%.2f") + " GB/s, reads " +
           number(speed.read_bytes_per_second / 1e9, "%.2f") + " GB/s (" + mebibytes(measured) +
           " measured)");
  if (!file.is_direct())
    log_warning(std::string(key) + ": no direct asynchronous I/O here: " + file.fallback_reason() +
                ". The page cache is used, which is slower and takes memory.");
}

dev_t device_of(const std::string& folder) {
  struct stat status {};
  return ::stat(folder.c_str(), &status) == 0 ? status.st_dev : dev_t{0};
}

void check_folder(const Job& job, const char* key, const OffloadSection& offload) {
  if (!offload.is_nvme())
    return;
  std::error_code error;
  if (!fs::is_directory(offload.nvme_path, error)) {
    throw ConfigError("parallel.zero_optimization." + std::string(key) +
                      ".nvme_path: expected a folder, found none at " + offload.nvme_path +
                      ". Make it, on a local disk.");
  }
  open_swap_file(job, offload)->reserve(io::kIoAlignment);
}

}  // namespace

void check_offload(const Job& job) {
  check_folder(job, "offload_optimizer", job.config.parallel.offload_optimizer);
  check_folder(job, "offload_param", job.config.parallel.offload_param);
}

SwapSpace free_swap_space(const RunConfig& config) {
  const OffloadSection& base = config.parallel.offload_param;
  const OffloadSection& states = config.parallel.offload_optimizer;
  SwapSpace space;
  if (base.is_nvme())
    space.base = static_cast<int64_t>(fs::space(base.nvme_path).available);
  if (states.is_nvme())
    space.states = static_cast<int64_t>(fs::space(states.nvme_path).available);
  if (base.is_nvme() && states.is_nvme())
    space.is_one_disk = device_of(base.nvme_path) == device_of(states.nvme_path);
  return space;
}

void require_swap_space(const RunConfig& config, const RunPlan& plan, const HostLimit& host) {
  if (fits_swap(plan, host))
    return;
  const SwapBytes need = plan.host_swap(host.ranks);
  const bool is_base = host.swap.is_one_disk || need.base > host.swap.base;
  const int64_t bytes = host.swap.is_one_disk ? need.base + need.states
                        : is_base             ? need.base
                                              : need.states;
  const auto& parallel = config.parallel;
  throw WriteError(
      "parallel.zero_optimization." + std::string(is_base ? "offload_param" : "offload_optimizer") +
      ".nvme_path: " + (is_base ? parallel.offload_param : parallel.offload_optimizer).nvme_path +
      ": expected " + mebibytes(bytes) + " free for the swap files of " +
      std::to_string(host.ranks) + " ranks of this machine, found " +
      mebibytes(is_base ? host.swap.base : host.swap.states) +
      ". Nothing was loaded. Free space there or choose another nvme_path.");
}

void open_base_file(Job& job) {
  const OffloadSection& offload = job.config.parallel.offload_param;
  if (!offload.is_nvme())
    return;
  run_on_all_ranks(job.comm, [&] {
    // Measured on a file of its own: this one grows by what is loaded.
    prepare(job, "offload_param", *open_swap_file(job, offload), job.swap.measured_bytes);
    job.base_file = open_swap_file(job, offload);
  });
}

void log_base_file(const Job& job) {
  if (job.base_file == nullptr)
    return;
  log_info("offload_param: the frozen base takes " + mebibytes(job.base_file->reserved_bytes()) +
           " of disk on rank 0; trained weights stay in memory");
}

void make_optimizer_states(Job& job) {
  const OffloadSection& offload = job.config.parallel.offload_optimizer;
  const optim::Optimizer& optimizer = *job.config.optimizer.optimizer;
  const std::vector<std::string> names = element_states(job.config);
  if (!offload.is_nvme()) {
    job.states = std::make_unique<OptimizerStates>(*job.store, optimizer, names);
    return;
  }
  run_on_all_ranks(job.comm, [&] {
    job.state_file = open_swap_file(job, offload);
    prepare(job, "offload_optimizer", *job.state_file,
            OptimizerStates::swap_bytes(*job.store, names));
    job.states = std::make_unique<OptimizerStates>(*job.store, optimizer, names, *job.state_file);
  });
  log_info("offload_optimizer: states take " + mebibytes(job.state_file->reserved_bytes()) +
           " of disk on rank 0");
}

}  // namespace shardtune::trainer
