// Start-up of the ranks of an MPI job: which of them share a host, the memory that they share
// there, and the connections of their heartbeats. All functions are collective over MPI_COMM_WORLD.
#pragma once

// The C++ bindings of OpenMPI are deprecated and do not compile without warnings.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <optional>
#include <string>
#include <vector>

#include "parallel/heartbeat.h"
#include "parallel/shared_memory.h"
#include "parallel/shared_memory_transport.h"

namespace shardtune::parallel {

/// MPI's text for a code.
std::string mpi_error_text(int code);
/// CommError naming `where` unless the code is MPI_SUCCESS.
void check_mpi(int code, const std::string& where);

/// Hosts are numbered in the order of their leaders, their first ranks.
struct MpiHosts {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  std::string host_name;
  std::vector<int> leaders;                // [host], ranks
  std::vector<int> locals;                 // ranks of this host, by local rank
  std::vector<int> host_of;                // [rank]
  std::vector<int> local_rank_of;          // [rank]
  MPI_Comm local = MPI_COMM_NULL;          // the ranks of this host
  MPI_Comm leaders_group = MPI_COMM_NULL;  // on leaders only

  int local_size() const { return static_cast<int>(locals.size()); }
  bool one_host() const { return leaders.size() == 1; }
  bool is_local(int other) const {
    return host_of[static_cast<size_t>(other)] == host_of[static_cast<size_t>(rank)];
  }
};

/// `num_pretended` > 0: ranks are taken as spread over so many hosts in turn.
MpiHosts find_hosts(int num_pretended);
void free_groups(MpiHosts& hosts);

/// A waiting rank may spin when the ranks of this host have a core each.
Cores find_cores(const MpiHosts& hosts);

/// Memory of this host's ranks, or on all ranks of all hosts none and the first rank's reason.
struct HostMemory {
  std::optional<SharedMemory> memory;
  std::string problem;
};
HostMemory share_memory(const MpiHosts& hosts);

/// Every rank connected to rank 0. CommError when that cannot be done in a minute.
Connections connect_heartbeats(const MpiHosts& hosts);
/// [rank]
std::vector<std::string> all_host_names(const MpiHosts& hosts);

}  // namespace shardtune::parallel
