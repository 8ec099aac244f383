// Two hosts on one machine: each has namespaces of its own for network, host name, processes, IPC
// and mounts (/proc, /dev/shm); a veth pair joins them, whose ends send at a limited rate (token
// bucket). mpirun reaches the second through an agent that enters its namespaces with a bare
// environment, as a login over ssh would. All of it, processes included, ends with the test
// process, however that ends.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <sstream>
#include <string>

#include "tests/trainer/tiny_model.h"

namespace shardtune::testing {

class TwoHosts {
 public:
  explicit TwoHosts(const std::string& rate = "1gbit") { problem_ = set_up(rate); }
  ~TwoHosts() {
    for (const pid_t holder : holders_) {
      if (holder > 0)
        kill(holder, SIGKILL);
    }
    while (waitpid(-1, nullptr, 0) > 0) {
    }
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  /// Why there are none on this machine; empty when there are.
  const std::string& problem() const { return problem_; }

  static const char* name(int host) { return kNames[static_cast<size_t>(host)]; }
  /// Runs the rest of a shell line on a host.
  std::string on(int host) const { return enter(holders_[static_cast<size_t>(host)]); }
  /// On the first host: mpirun with so many ranks on each.
  std::string mpirun(int ranks_of_host, const std::string& options = "") const {
    const std::string slots = ":" + std::to_string(ranks_of_host);
    return on(0) + "mpirun --allow-run-as-root --quiet --bind-to none " + "--mca plm_rsh_agent " +
           agent() + " -x OMP_NUM_THREADS -H " + kAddresses[0] + slots + "," + kAddresses[1] +
           slots + " -n " + std::to_string(2 * ranks_of_host) + " " + options + " ";
  }
  /// The same for launch/run, which takes OpenMPI's options from variables.
  std::string agent_variable() const { return "export OMPI_MCA_plm_rsh_agent=" + agent() + " && "; }
  static std::string hostfile(int ranks_of_host) {
    const std::string slots = " slots=" + std::to_string(ranks_of_host) + "\n";
    return "# both hosts\n" + (kAddresses[0] + slots) + kAddresses[1] + slots;
  }
  /// Processes of both hosts whose command line begins so.
  int count_processes(const std::string& command) const {
    int count = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      if (read_text(entry.path() / "cmdline").starts_with(command) && is_inside(entry.path()))
        ++count;
    }
    return count;
  }

  /// Bytes that the first host has sent to the second, headers of Ethernet, IP and TCP included.
  int64_t sent_bytes() const {
    // Interface: 8 numbers of what was received, then bytes sent.
    std::istringstream lines(read_text("/proc/" + std::to_string(holders_[0]) + "/net/dev"));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string interface;
      words >> interface;
      int64_t number = 0;
      for (int i = 0; i < 9; ++i)
        words >> number;
      if (interface == "wire:")
        return number;
    }
    return -1;
  }
  /// The wire between the hosts breaks; connections hear nothing of it.
  bool cut() const { return run(on(1) + "ip link set wire down"); }

 private:
  static constexpr std::array<const char*, 2> kNames{"first-host", "second-host"};
  static constexpr std::array<const char*, 2> kAddresses{"10.91.7.1", "10.91.7.2"};

  std::string agent() const { return (folder_.path() / "agent.sh").string(); }
  /// Whether a process of /proc is one of ours: it has the network of one of the hosts.
  bool is_inside(const fs::path& process) const {
    std::error_code error;
    const fs::path network = fs::read_symlink(process / "ns/net", error);
    return std::ranges::any_of(holders_, [&](pid_t holder) {
      return network == fs::read_symlink("/proc/" + std::to_string(holder) + "/ns/net", error);
    });
  }
  static std::string enter(pid_t first) {
    return "nsenter --target " + std::to_string(first) +
           " --net --uts --pid --ipc --mount --root --wd=. ";
  }
  static bool run(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
  }

  std::string set_up(const std::string& rate) {
    if (geteuid() != 0)
      return "network namespaces need root";
    for (const char* program : {"ip", "tc", "nsenter", "mpirun"}) {
      if (!run(std::string("command -v ") + program))
        return std::string(program) +
               " is not there (Debian packages iproute2, util-linux, "
               "openmpi-bin)";
    }
    for (size_t host = 0; host < holders_.size(); ++host) {
      holders_[host] = start_host(kNames[host], holders_[0]);
      if (holders_[host] <= 0)
        return "this process may not make namespaces (CAP_SYS_ADMIN)";
    }
    const auto of = [&](int host) { return std::to_string(holders_[static_cast<size_t>(host)]); };
    if (!run("ip link add name wire netns " + of(0) + " type veth peer name wire netns " + of(1)))
      return "no veth pair can be made (CAP_NET_ADMIN, kernel module veth)";
    for (const int host : {0, 1}) {
      const auto h = static_cast<size_t>(host);
      if (!run(on(host) + "ip address add " + kAddresses[h] + "/24 dev wire") ||
          !run(on(host) + "ip link set lo up") || !run(on(host) + "ip link set wire up"))
        return "the veth pair cannot be set up";
      if (!run(on(host) + "tc qdisc add dev wire root tbf rate " + rate +
               " burst 256kb latency 100ms"))
        return "no token bucket filter (kernel module sch_tbf)";
    }
    write_agent();
    return "";
  }

  /// The first process of a host, which sits there until this process ends; -1: not allowed. The
  /// processes of a second host are among those that the first host `outer` sees: so its agent can
  /// enter it.
  static pid_t start_host(const char* name, pid_t outer) {
    std::array<int, 2> answers{};
    if (pipe2(answers.data(), O_CLOEXEC) != 0)
      return -1;
    const pid_t middle = fork();
    if (middle == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const std::string outside = "/proc/" + std::to_string(outer) + "/ns/pid";
      if (outer > 0 &&
          (setns(open(outside.c_str(), O_RDONLY), CLONE_NEWPID) != 0 || fork_and_wait()))
        _exit(1);
      constexpr int kOwn = CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS;
      if (unshare(kOwn) == 0 && !fork_and_wait())
        be_first_process(name, answers[1]);
      _exit(1);
    }
    close(answers[1]);
    char ready = 0;
    const bool made = read(answers[0], &ready, 1) == 1;
    close(answers[0]);
    return made ? last_descendant(middle) : -1;
  }

  /// False in the child; the parent waits for its end, then true.
  static bool fork_and_wait() {
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      return false;
    }
    waitpid(child, nullptr, 0);
    return true;
  }

  static pid_t last_descendant(pid_t process) {
    const std::string text = std::to_string(process);
    std::istringstream children(read_text("/proc/" + text + "/task/" + text + "/children"));
    pid_t child = 0;
    return children >> child ? last_descendant(child) : process;
  }

  /// The second host's first process as the first host sees it.
  pid_t inner_number() const {
    std::istringstream words(read_text("/proc/" + std::to_string(holders_[1]) + "/status"));
    std::string word;
    while (words >> word && word != "NSpid:") {
    }
    pid_t number = -1;
    words >> number >> number;
    return number;
  }

  // What this host mounts is seen by nobody else. In a chroot "/" is no mount point.
  static bool keep_mounts_here() {
    const auto keep = [](const char* point) {
      return mount("none", point, nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    };
    if (keep("/"))
      return true;
    const bool devices = keep("/dev");
    return keep("/proc") && (keep("/dev/shm") || devices);
  }

  [[noreturn]] static void be_first_process(const char* name, int answers) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const bool made = sethostname(name, std::strlen(name)) == 0 && keep_mounts_here() &&
                      mount("proc", "/proc", "proc", 0, nullptr) == 0 &&
                      mount("tmpfs", "/dev/shm", "tmpfs", 0, nullptr) == 0;
    if (!made || write(answers, "y", 1) != 1)
      _exit(1);
    close(answers);
    signal(SIGCHLD, SIG_IGN);  // nobody else buries those whose parents died
    while (true)
      pause();
  }

  // mpirun calls it as it would call ssh: AGENT HOST COMMAND...
  void write_agent() const {
    const fs::path agent = folder_.path() / "agent.sh";
    write_text(
        agent,
        "#!/bin/sh\n[ \"$1\" = " + std::string(kAddresses[1]) + " ] || exit 1\nshift\nexec " +
            enter(inner_number()) +
            "env -i PATH=\"$PATH\" HOME=\"$HOME\" TMPDIR=\"${TMPDIR:-/tmp}\" sh -c \"$*\"\n");
    fs::permissions(agent, fs::perms::owner_all);
  }

  TempFolder folder_;
  std::array<pid_t, 2> holders_{-1, -1};
  std::string problem_;
};

}  // namespace shardtune::testing
