// launch/slurm.sbatch under a Slurm of one node that the test starts for itself: own configuration,
// munge key and free ports in a temporary folder, daemons that end with the test.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using testing::write_text;

int free_port() {
  const int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  int port = -1;
  if (bind(probe, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
      getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length) == 0)
    port = ntohs(address.sin_port);
  close(probe);
  return port;
}

template <typename Ready>
bool wait_for(const Ready& ready, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

class Slurm : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string problem = start();
    if (!problem.empty())
      GTEST_SKIP() << "no Slurm on this machine: " << problem;
  }
  void TearDown() override {
    if (HasFailure())
      slurm("scancel --user=root --full --signal=KILL");
    for (auto daemon = daemons_.rbegin(); daemon != daemons_.rend(); ++daemon) {
      kill(*daemon, SIGTERM);
      if (!wait_for([&] { return waitpid(*daemon, nullptr, WNOHANG) != 0; }, 5.0)) {
        kill(*daemon, SIGKILL);
        waitpid(*daemon, nullptr, 0);
      }
    }
  }

  /// Where Slurm's programs find the configuration.
  std::string environment() const {
    return "export SLURM_CONF=" + folder_.path("slurm.conf").string() +
           " SHARDTUNE_ROOT=" SHARDTUNE_SOURCE_DIR " SHARDTUNE_BINARY=$st; ";
  }
  Outcome slurm(const std::string& line) const { return folder_.shell(environment() + line); }
  std::string state_of(const std::string& job) const {
    const std::string text = slurm("scontrol show job " + job).out;
    const size_t begin = text.find("JobState=");
    return begin == std::string::npos ? ""
                                      : text.substr(begin + 9, text.find(' ', begin) - begin - 9);
  }
  std::string submit(const std::string& options, const std::string& arguments) const {
    const Outcome outcome = slurm("sbatch --parsable --output=job.log " + options +
                                  " " SHARDTUNE_SOURCE_DIR "/launch/slurm.sbatch " + arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.out.substr(0, outcome.out.find('\n'));
  }
  std::string logs() const {
    return read_text(folder_.path("job.log")) + "\n-- slurmctld\n" +
           read_text(folder_.path("slurmctld.log")) + "\n-- slurmd\n" +
           read_text(folder_.path("slurmd.log"));
  }

  ProgramFolder folder_;

 private:
  std::string start() {
    if (geteuid() != 0)
      return "slurmd needs root";
    for (const char* program : {"slurmctld", "slurmd", "munged", "sbatch", "mpirun"}) {
      if (folder_.shell(std::string("command -v ") + program).code != 0)
        return std::string(program) +
               " is not there (Debian packages slurmctld, slurmd, slurm-client, munge)";
    }
    write_configuration();
    const std::string munge = folder_.path("munge").string();
    run_daemon("munged --foreground --force --key-file=" + munge + ".key --socket=" + munge +
               ".socket --pid-file=" + munge + ".pid --log-file=" + munge +
               ".log --seed-file=" + munge + ".seed");
    if (!wait_for([&] { return fs::exists(munge + ".socket"); }, 10.0))
      return "munged does not start: " + read_text(munge + ".log");
    run_daemon("slurmctld -D -f slurm.conf");
    run_daemon("slurmd -D -f slurm.conf");
    const auto is_idle = [&] { return slurm("sinfo --noheader --format=%T").out == "idle\n"; };
    return wait_for(is_idle, 20.0) ? "" : "its node does not come up: " + logs();
  }

  void write_configuration() const {
    const std::string at = folder_.path("").string();
    write_text(at + "munge.key", std::string(1024, 'k'));
    fs::permissions(at + "munge.key", fs::perms::owner_read | fs::perms::owner_write);
    for (const char* name : {"state", "spool"})
      fs::create_directory(at + name);
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    const std::string node = std::string(host.data()).substr(0, std::string(host.data()).find('.'));
    write_text(
        at + "slurm.conf",
        "ClusterName=test\nSlurmctldHost=" + node +
            "(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
            "SlurmctldPort=" +
            std::to_string(free_port()) + "\nSlurmdPort=" + std::to_string(free_port()) +
            "\nAuthType=auth/munge\nCredType=cred/munge\n"
            // A job that queues again waits until its old credentials have run out.
            "AuthInfo=socket=" +
            at +
            "munge.socket,cred_expire=5\n"
            "StateSaveLocation=" +
            at + "state\nSlurmdSpoolDir=" + at +
            "spool\n"
            "SlurmctldPidFile=" +
            at + "slurmctld.pid\nSlurmdPidFile=" + at +
            "slurmd.pid\n"
            "SlurmctldLogFile=" +
            at + "slurmctld.log\nSlurmdLogFile=" + at +
            "slurmd.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_Core\nMpiDefault=none\nReturnToService=2\nKillWait=10\n"
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1\n"
            "NodeName=" +
            node +
            " NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n"
            "PartitionName=test Nodes=" +
            node + " Default=YES MaxTime=INFINITE State=UP\n");
  }

  void run_daemon(const std::string& command) {
    const pid_t parent = getpid();
    const std::string line = "cd " + testing::quoted(folder_.path("").string()) + " && exec " +
                             command + " >daemon.log 2>&1 </dev/null";
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent)
        _exit(1);
      execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
      _exit(1);
    }
    daemons_.push_back(child);
  }

  std::vector<pid_t> daemons_;
};

// The signal that Slurm sends before the time limit makes the ranks save; the job queues again and
// ends with what an undisturbed run gives.
TEST_F(Slurm, AJobNearItsTimeLimitIsSavedAndGoesOn) {
  const std::string steps = " --set training.max_steps=600";
  ASSERT_EQ(folder_.run("train run.yaml --set checkpoint.output_dir=whole" + steps).code, 0);
  const std::string job = submit("--ntasks-per-node=2", "train run.yaml" + steps);
  const fs::path metrics = folder_.path("run/metrics.jsonl");
  ASSERT_TRUE(wait_for([&] { return std::ranges::count(read_text(metrics), '\n') > 2; }, 30.0))
      << logs();
  ASSERT_EQ(slurm("scancel --batch --signal=USR1 " + job).code, 0);
  ASSERT_TRUE(wait_for([&] { return state_of(job) == "COMPLETED"; }, 60.0)) << state_of(job) << "\n"
                                                                            << logs();
  const std::string log = read_text(folder_.path("job.log"));
  EXPECT_NE(log.find("start 1: 2 ranks"), std::string::npos) << log;
  EXPECT_NE(log.find("queueing it again"), std::string::npos) << log;
  EXPECT_NE(log.find("start 2: 2 ranks"), std::string::npos) << log;
  EXPECT_EQ(read_text(folder_.path("run/adapter/adapter_model.safetensors")),
            read_text(folder_.path("whole/adapter/adapter_model.safetensors")));
}

TEST_F(Slurm, AJobAskedToEndIsSavedAndStaysEnded) {
  const std::string job =
      submit("--ntasks-per-node=2", "train run.yaml --set training.max_steps=100000");
  const fs::path metrics = folder_.path("run/metrics.jsonl");
  ASSERT_TRUE(wait_for([&] { return std::ranges::count(read_text(metrics), '\n') > 2; }, 30.0))
      << logs();
  ASSERT_EQ(slurm("scancel --batch --signal=TERM " + job).code, 0);
  const auto is_over = [&] { return slurm("squeue --noheader").out.empty(); };
  ASSERT_TRUE(wait_for(is_over, 30.0)) << logs();
  EXPECT_EQ(state_of(job), "FAILED");
  EXPECT_NE(slurm("scontrol show job " + job).out.find("ExitCode=75:0"), std::string::npos);
  EXPECT_NE(read_text(folder_.path("job.log")).find("I saved run/checkpoint-"), std::string::npos)
      << logs();
}

TEST_F(Slurm, SrunStartsRanksToo) {
  ASSERT_EQ(folder_.run("train run.yaml --set checkpoint.output_dir=whole").code, 0);
  const std::string job =
      submit("--ntasks-per-node=2 --export=ALL,SHARDTUNE_LAUNCHER=srun", "train run.yaml");
  ASSERT_TRUE(
      wait_for([&] { return state_of(job) == "COMPLETED" || state_of(job) == "FAILED"; }, 60.0))
      << logs();
  EXPECT_EQ(state_of(job), "COMPLETED") << logs();
  EXPECT_NE(read_text(folder_.path("job.log")).find("ranks 2 x threads 1"), std::string::npos)
      << logs();
  EXPECT_EQ(read_text(folder_.path("run/adapter/adapter_model.safetensors")),
            read_text(folder_.path("whole/adapter/adapter_model.safetensors")));
}

}  // namespace
}  // namespace shardtune::launch
