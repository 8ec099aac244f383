// Ranks as threads of one process, for tests: the same checks and results as MPI without a
// launcher. When one rank fails, the others leave their current call with a CommError.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace shardtune::parallel {

enum class ThreadTransport {
  kBuffers,       // ranks read each other's buffers
  kSharedMemory,  // parallel/shared_memory_transport.h, as processes of one host use it
};

/// One communicator per rank of a new in-process group; each may be used by one thread. The ranks
/// say that they are spread over `num_pretended_hosts` in turn.
std::vector<std::unique_ptr<Communicator>> make_thread_group(
    int world_size, ThreadTransport transport = ThreadTransport::kBuffers,
    int num_pretended_hosts = 1);

/// Runs body(comm) on world_size threads and waits for all. The first exception that is not a
/// consequence of another rank's failure is rethrown.
void run_on_threads(int world_size, const std::function<void(Communicator&)>& body,
                    ThreadTransport transport = ThreadTransport::kBuffers,
                    int num_pretended_hosts = 1);

}  // namespace shardtune::parallel
