// What memory a run holds, by purpose, and what the process and the machine say about it.
#pragma once

#include <cstdint>

#include "trainer/job.h"

namespace shardtune::trainer {

int64_t peak_rss_bytes();
/// Bytes that can still be had without swapping, under the cgroup's limit too; -1 when unknown.
int64_t available_bytes();

/// Logs the table base, adapters, gradients, optimizer, activations, free. Call after the probe:
/// activations are what the buffer pool held at most beyond the store's buffers.
void log_memory_table(const Job& job, int64_t pool_bytes_before_probe);

}  // namespace shardtune::trainer
