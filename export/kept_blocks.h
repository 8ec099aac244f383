// Weights that stay in the blocks of the model's GGUF file: what an adapter changes goes into the
// minima of the blocks, where its change is the same for all columns of a block (QA-LoRA).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace shardtune::exporting {

/// Whether a block of this type is scale * code + minimum with both in F16: Q4_1, Q5_1.
bool has_minima(std::string_view type);

/// minimum = F16(minimum + delta) of every block; codes and scales stay. The values of a block move
/// by its delta but for that rounding, at most 2^-11 of the new minimum (2^-25 where it is tiny).
/// Shapes  blocks: whole ones of `type`; delta: the values that they hold, one for each column
/// Errors  ArgumentError: a type without minima, sizes that do not fit
void add_to_minima(std::string_view type, std::span<const float> delta,
                   std::span<std::byte> blocks);

}  // namespace shardtune::exporting
