// Swap blocks on a device that does what the input says.
#pragma once

#include <filesystem>

namespace shardtune::fuzz {

/// Writes regions into a swap file and reads them back through the faults that the file lists
/// (tests/fuzz/make_seeds.py, "swap", has the layout). Ends the program where a read that succeeds
/// gives other bytes than were written. Throws shardtune::Error alone.
void read_swap_blocks(const std::filesystem::path& file);

}  // namespace shardtune::fuzz
