// Data-parallel loops over OpenMP threads. The split never changes a result: every index is
// computed whole by one thread, and sums over indices are the caller's, in a fixed order. In a dry
// run (core/dry_run.h) no body runs.
#pragma once

#include <cstdint>
#include <functional>

namespace shardtune {

/// Threads used by loops and by oneDNN in this process.
int num_threads();
void set_num_threads(int n);

/// Calls body(begin, end) on disjoint ranges covering [0, count), at least `grain` indices each.
/// An exception of a body is rethrown on the calling thread. Nested calls run on the caller.
void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body);

/// Calls body(i) for every i in [0, count), handing out indices one at a time (uneven work).
void parallel_tasks(int64_t count, const std::function<void(int64_t i)>& body);

}  // namespace shardtune
