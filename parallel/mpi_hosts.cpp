#include "parallel/mpi_hosts.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <random>

namespace shardtune::parallel {

namespace {
constexpr double kConnectSeconds = 60.0;
constexpr const char* kWhere = "start-up of the ranks";

/// How the ranks of a host find the memory that its leader made.
struct Handle {
  int64_t process = 0;
  int64_t descriptor = -1;
  uint64_t nonce = 0;
};

// Lies where the first doorbell is, until all have looked.
uint64_t& nonce_in(const SharedMemory& memory) {
  return *reinterpret_cast<uint64_t*>(memory.bytes().data());
}

/// On the leader: new memory. A failure leaves the handle without descriptor.
Handle offer_memory(const MpiHosts& hosts, HostMemory& result) {
  Handle handle;
  try {
    result.memory.emplace(
        SharedMemory::create(SharedMemoryTransport::segment_bytes(hosts.local_size())));
    std::random_device random;
    handle = {getpid(), result.memory->descriptor(), (uint64_t{random()} << 32) | random()};
    nonce_in(*result.memory) = handle.nonce;
  } catch (const Error& error) {
    result.problem = error.what();
  }
  return handle;
}

/// On the other ranks: the leader's memory, if it is what the leader means.
void open_memory(const MpiHosts& hosts, const Handle& handle, HostMemory& result) {
  try {
    result.memory.emplace(
        SharedMemory::open(static_cast<pid_t>(handle.process), static_cast<int>(handle.descriptor),
                           SharedMemoryTransport::segment_bytes(hosts.local_size())));
    if (nonce_in(*result.memory) != handle.nonce)
      result.problem =
          "another process has the number that the first rank of the host told; start all ranks of "
          "a host in one PID namespace";
  } catch (const Error& error) {
    result.problem = error.what();
  }
}

/// The problem of the first rank that has one becomes every rank's.
void agree_on_problem(const MpiHosts& hosts, HostMemory& result) {
  int first = result.problem.empty() ? hosts.world_size : hosts.rank;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD), kWhere);
  if (first == hosts.world_size)
    return;
  result.problem.resize(512, '\0');
  check_mpi(MPI_Bcast(result.problem.data(), static_cast<int>(result.problem.size()), MPI_CHAR,
                      first, MPI_COMM_WORLD),
            kWhere);
  result.problem = fmt::format("rank {}: {}", first, result.problem.c_str());
  result.memory.reset();
}
}  // namespace

std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
    return fmt::format("error {}", code);
  return std::string(text, static_cast<size_t>(length));
}

void check_mpi(int code, const std::string& where) {
  if (code != MPI_SUCCESS)
    throw CommError(fmt::format("{}: MPI: {}. Look for the first error of any rank.", where,
                                mpi_error_text(code)));
}

MpiHosts find_hosts(int num_pretended) {
  MpiHosts hosts;
  MPI_Comm_rank(MPI_COMM_WORLD, &hosts.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &hosts.world_size);
  if (num_pretended > 0)
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, hosts.rank % num_pretended, hosts.rank, &hosts.local),
              kWhere);
  else
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, hosts.rank, MPI_INFO_NULL,
                                  &hosts.local),
              kWhere);
  MPI_Comm_rank(hosts.local, &hosts.local_rank);
  char name[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0;
  check_mpi(MPI_Get_processor_name(name, &length), kWhere);
  hosts.host_name.assign(name, static_cast<size_t>(length));

  // Each rank's leader and local rank.
  int leader = hosts.rank;
  check_mpi(MPI_Bcast(&leader, 1, MPI_INT, 0, hosts.local), kWhere);
  const int mine[2] = {leader, hosts.local_rank};
  std::vector<int> all(2 * static_cast<size_t>(hosts.world_size));
  check_mpi(MPI_Allgather(mine, 2, MPI_INT, all.data(), 2, MPI_INT, MPI_COMM_WORLD), kWhere);
  const auto leader_of = [&](int r) { return all[2 * static_cast<size_t>(r)]; };
  for (int r = 0; r < hosts.world_size; ++r) {
    if (leader_of(r) == r)
      hosts.leaders.push_back(r);
    if (leader_of(r) == leader)
      hosts.locals.push_back(r);
    hosts.local_rank_of.push_back(all[2 * static_cast<size_t>(r) + 1]);
  }
  for (int r = 0; r < hosts.world_size; ++r)
    hosts.host_of.push_back(
        static_cast<int>(std::ranges::find(hosts.leaders, leader_of(r)) - hosts.leaders.begin()));
  check_mpi(MPI_Comm_split(MPI_COMM_WORLD, hosts.local_rank == 0 ? 0 : MPI_UNDEFINED, hosts.rank,
                           &hosts.leaders_group),
            kWhere);
  return hosts;
}

void free_groups(MpiHosts& hosts) {
  for (MPI_Comm* group : {&hosts.local, &hosts.leaders_group}) {
    if (*group != MPI_COMM_NULL)
      MPI_Comm_free(group);
  }
}

Cores find_cores(const MpiHosts& hosts) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  // A rank that cannot tell counts for nothing: then the others yield.
  if (sched_getaffinity(0, sizeof cpus, &cpus) != 0)
    CPU_ZERO(&cpus);
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &cpus, sizeof cpus, MPI_BYTE, MPI_BOR, hosts.local),
            kWhere);
  return CPU_COUNT(&cpus) >= hosts.local_size() ? Cores::kOnePerRank : Cores::kShared;
}

HostMemory share_memory(const MpiHosts& hosts) {
  HostMemory result;
  Handle handle;
  const bool fits = hosts.local_size() <= SharedMemoryTransport::kMaxRanks;
  if (hosts.local_rank == 0 && fits)
    handle = offer_memory(hosts, result);
  check_mpi(MPI_Bcast(&handle, sizeof handle, MPI_BYTE, 0, hosts.local), kWhere);
  if (!fits)
    result.problem =
        fmt::format("expected at most {} ranks on a host, found {} on {}",
                    SharedMemoryTransport::kMaxRanks, hosts.local_size(), hosts.host_name);
  else if (hosts.local_rank != 0 && handle.descriptor >= 0)
    open_memory(hosts, handle, result);
  agree_on_problem(hosts, result);
  if (!result.problem.empty())
    return result;
  result.memory->close_descriptor();
  if (hosts.local_rank == 0)
    nonce_in(*result.memory) = 0;
  check_mpi(MPI_Barrier(hosts.local), kWhere);
  return result;
}

std::vector<std::string> all_host_names(const MpiHosts& hosts) {
  constexpr int kNameBytes = MPI_MAX_PROCESSOR_NAME;
  std::string names(static_cast<size_t>(kNameBytes) * static_cast<size_t>(hosts.world_size), '\0');
  std::string own = hosts.host_name;
  own.resize(kNameBytes, '\0');
  check_mpi(MPI_Allgather(own.data(), kNameBytes, MPI_CHAR, names.data(), kNameBytes, MPI_CHAR,
                          MPI_COMM_WORLD),
            kWhere);
  std::vector<std::string> result;
  for (int r = 0; r < hosts.world_size; ++r)
    result.emplace_back(names.c_str() + static_cast<std::ptrdiff_t>(r) * kNameBytes);
  return result;
}

Connections connect_heartbeats(const MpiHosts& hosts) {
  std::optional<Listener> listener;
  Contact contact;
  if (hosts.rank == 0) {
    listener.emplace(hosts.one_host() ? Reach::kHost : Reach::kNetwork);
    contact = listener->contact();
  }
  check_mpi(MPI_Bcast(&contact, sizeof contact, MPI_BYTE, 0, MPI_COMM_WORLD), kWhere);
  if (hosts.rank == 0)
    return listener->accept_all(hosts.world_size, kConnectSeconds);
  Connections connections(static_cast<size_t>(hosts.world_size));
  connections[0] = connect_to(contact, hosts.rank, kConnectSeconds);
  return connections;
}

}  // namespace shardtune::parallel
