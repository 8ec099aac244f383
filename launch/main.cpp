// Entry of the program: finds the verb, turns what it throws into one message and an exit code.
#include <malloc.h>

#include <cstdio>
#include <string>
#include <vector>

#include "core/instruction_set.h"
#include "core/log.h"
#include "core/topology.h"
#include "launch/failure.h"
#include "launch/output.h"
#include "launch/verbs.h"

namespace shardtune::launch {
namespace {

std::string usage() {
  std::string text = "usage: shardtune VERB [options]   (shardtune VERB --help)\n\n";
  for (const Verb& verb : verbs()) {
    std::string name(verb.name);
    name.resize(10, ' ');
    text += "  " + name + std::string(verb.summary) + "\n";
  }
  return text + "\nSeveral ranks: launch/run -n N train CONFIG.yaml\n";
}

int run(const std::vector<std::string>& arguments, const RankInfo& ranks) {
  log_configure(ranks.rank, ranks.world_size, LogLevel::kInfo);
  if (arguments.empty()) {
    std::fputs(usage().c_str(), stderr);
    throw ConfigError("expected a verb, found none. Write for example 'shardtune version'.");
  }
  if (arguments[0] == "--help" || arguments[0] == "-h" || arguments[0] == "help") {
    print(usage());
    flush_output();
    return 0;
  }
  check_instruction_set_limit();
  const Verb& verb = find_verb(arguments[0] == "--version" ? "version" : arguments[0]);
  if (ranks.world_size > 1 && verb.name != "train")
    throw ConfigError("shardtune " + std::string(verb.name) + ": expected one process, found " +
                      std::to_string(ranks.world_size) + " ranks. Start it without mpirun.");
  widen_inherited_mask(ranks.local_rank, ranks.local_size);
  const int code = verb.run(Arguments(arguments).subspan(1));
  flush_output();
  return code;
}

}  // namespace
}  // namespace shardtune::launch

int main(int argc, char** argv) {
  using namespace shardtune::launch;
  // From 1 MiB on an allocation is pages of its own and goes back when it is freed. By itself glibc
  // raises this bound to 32 MiB and keeps what is below, so that memory would depend on history.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  const RankInfo ranks = rank_from_environment();
  int code = 0;
  try {
    code = run(std::vector<std::string>(argv + 1, argv + argc), ranks);
  } catch (...) {
    const Failure failure = current_failure();
    report(failure, ranks);
    code = static_cast<int>(failure.code);
  }
  leave_status(ranks, code);
  return code;
}
