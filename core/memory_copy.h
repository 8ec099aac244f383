// Copying memory with regard to the caches, and the pause of a spinning wait.
#pragma once

#include <cstddef>

namespace shardtune {

/// memcpy whose stores go past the caches: for a destination that is not read again soon and is
/// larger than a cache. Ordered before every later store of this thread. The ranges must not
/// overlap.
void copy_past_caches(std::byte* to, const std::byte* from, size_t num_bytes);

/// Tells the core that this is a spinning wait.
void pause_in_spin();

}  // namespace shardtune
