// Runs a program under mpirun on two hosts of their own networks on this machine
// (tests/support/two_hosts.h), whose wire sends at a limited rate: what overlap between hosts is
// measured with. Needs root.
//   build/release/bench/parallel/two_hosts RATE RANKS_OF_HOST PROGRAM ARGUMENTS...
// RATE as tc takes it (1gbit). The program starts in this folder; its exit code is passed on.
#include "tests/support/two_hosts.h"

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: two_hosts RATE RANKS_OF_HOST PROGRAM ARGUMENTS...\n");
    return 64;
  }
  const shardtune::testing::TwoHosts hosts(argv[1]);
  if (!hosts.problem().empty()) {
    std::fprintf(stderr, "no two hosts on this machine: %s\n", hosts.problem().c_str());
    return 69;
  }
  std::string command = hosts.mpirun(std::atoi(argv[2]));
  for (int i = 3; i < argc; ++i)
    command += std::string("'") + argv[i] + "' ";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 70;
}
