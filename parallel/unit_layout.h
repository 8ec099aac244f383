// How one unit stands in its gathered buffer, and which rank holds which bytes of it between
// gathers: pure arithmetic, the same on every rank.
//
// The buffer: frozen parameters one after another at multiples of 64 bytes; then the trainables'
// fp32 weights as they stand in the flat layout; then their bf16 copies in the same order. The
// frozen region is cut once into a contiguous range per rank, so that a gather is one message per
// pair of ranks; cuts fall between rows of a matrix, elsewhere at multiples of 64 bytes of a
// parameter. Trainables are cut as parallel/shards.h says.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/flat_layout.h"
#include "parallel/parameter_table.h"

namespace shardtune::parallel {

struct UnitLayout {
  struct Run {               // trainables that stand side by side in the flat layout
    int64_t flat_begin = 0;  // elements
    int64_t flat_end = 0;
    int64_t offset = 0;  // bytes in the buffer
  };
  /// Bytes [begin, end) of the buffer, held by one rank.
  struct Piece {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t flat_begin = -1;  // of trainables: flat element that it starts with; of frozen bytes -1
  };

  std::map<ParameterId, int64_t> offsets;  // bytes in the buffer
  int64_t frozen_bytes = 0;
  std::vector<int64_t> cuts;  // rank r holds frozen bytes [cuts[r], cuts[r + 1])
  std::vector<Run> runs;
  int64_t weights_bytes = 0;  // fp32, from frozen_bytes on
  int64_t num_bytes() const { return frozen_bytes + weights_bytes + weights_bytes / 2; }
  int64_t bf16_begin() const { return frozen_bytes + weights_bytes; }

  /// What a rank holds, in the order in which it is sent. `shard` is the rank's of the flat layout.
  std::vector<Piece> pieces(int rank, const FlatLayout::Shard& shard) const;
  /// Rank that holds this byte of the frozen region.
  int owner_of(int64_t frozen_byte) const;
};

/// Places the frozen parameters declared so far.
UnitLayout lay_out_frozen(const ParameterTable& table, UnitId unit);
/// Adds the trainables, after seal().
void lay_out_trainables(const ParameterTable& table, UnitId unit, const FlatLayout& flat,
                        UnitLayout& layout);

}  // namespace shardtune::parallel
