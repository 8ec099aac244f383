// What happens when something went wrong: one message on standard error, the exit code of the table
// in docs/exit_codes.md, and a line in the status file that launch/run reads.
#pragma once

#include <string>

#include "core/error.h"

namespace shardtune::launch {

/// This process among the ranks that mpirun started; 0 of 1 otherwise. Read from the environment,
/// so that it is known before MPI is.
struct RankInfo {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_size = 1;
};
RankInfo rank_from_environment();

struct Failure {
  ExitCode code = ExitCode::kInternal;
  std::string message;
};
/// The exception being handled, as code and message. Call inside a catch block.
Failure current_failure();

/// Prints "shardtune: error: [rank i/n] message". Ranks other than 0 wait a moment first: an error
/// that all ranks find is then told once, since rank 0 ends the job meanwhile.
void report(const Failure& failure, const RankInfo& ranks);

/// Another rank is lost, as every rank that is left finds by itself: prints the message at once and
/// leaves the status line. Signals that the launcher sends now change nothing. Returns when the
/// other ranks have had the time to print theirs; the process is to end then, with code 70.
void report_lost_peer(const std::string& message, const RankInfo& ranks) noexcept;

/// Appends "<rank> <code>" to the file named by SHARDTUNE_STATUS_FILE, if it is there.
void leave_status(const RankInfo& ranks, int code) noexcept;

}  // namespace shardtune::launch
