// What the process and the machine say about memory.
#pragma once

#include <cstdint>

namespace shardtune::trainer {

int64_t peak_rss_bytes();
/// Resident now, after free heap memory was given back.
int64_t resident_bytes();
/// Bytes that can still be had without swapping, under the cgroup's limit too; -1 when unknown.
int64_t available_bytes();

}  // namespace shardtune::trainer
