// Runs a list of trainings one after another on the ranks that it was started with, as
// `shardtune train` would: alone, or under mpirun. MPI's start is paid once for all of them.
//   run_list CONFIG.yaml LIST     LIST: one training a line, the overrides of --set between tabs
// Says for each from which step it went on (-1: from the start), and at the end on what it ran.
#include <cstdio>
#include <sstream>

#include "core/log.h"
#include "io/file.h"
#include "parallel/communicator.h"
#include "trainer/config.h"
#include "trainer/train.h"

// Many small trainings spend most of their time waiting for the disk; that bytes reach it is what
// save_faults_test.cpp tests.
extern "C" int fsync(int) { return 0; }

namespace shardtune::trainer {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);)
    parts.push_back(part);
  return parts;
}

int run_all(parallel::Communicator& comm, const std::string& config, const std::string& list) {
  log_configure(comm.rank(), comm.world_size(), LogLevel::kWarning);
  TrainOptions options;
  options.identity = "test";
  options.catch_signals = false;
  options.swap.measured_bytes = 1 << 16;
  for (const std::string& line : split(io::read_text_file(list, 1 << 24), '\n')) {
    const TrainResult result = train(load_config(config, split(line, '\t')), comm, options);
    if (comm.rank() == 0)
      std::printf("from step %lld\n", static_cast<long long>(result.resumed_from));
  }
  if (comm.rank() == 0)
    std::printf("%d %s ranks\n", comm.world_size(), std::string(comm.backend()).c_str());
  return 0;
}

}  // namespace
}  // namespace shardtune::trainer

int main(int argc, char** argv) {
  if (argc != 3)
    return 64;
  const auto comm = shardtune::parallel::make_communicator();
  try {
    return shardtune::trainer::run_all(*comm, argv[1], argv[2]);
  } catch (const shardtune::Error& error) {
    std::fprintf(stderr, "run_list: %s\n", error.what());
    comm->abort(static_cast<int>(error.exit_code()));
    return static_cast<int>(error.exit_code());
  }
}
