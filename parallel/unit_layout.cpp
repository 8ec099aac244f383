#include "parallel/unit_layout.h"

#include <algorithm>

#include "core/checked.h"

namespace shardtune::parallel {

namespace {
constexpr int64_t kAlign = 64;

// Whole rows stay together, so that a row can be fetched from one rank.
int64_t granule(const DeclaredParameter& parameter) {
  const Shape& shape = parameter.spec.shape;
  return shape.ndim() >= 2 && shape[0] > 0 ? std::max<int64_t>(1, parameter.num_bytes / shape[0])
                                           : kAlign;
}
}  // namespace

UnitLayout lay_out_frozen(const ParameterTable& table, UnitId unit) {
  UnitLayout layout;
  for (const ParameterId id : table.unit(unit).parameters) {
    if (table.at(id).is_trainable())
      continue;
    layout.offsets.emplace(id, layout.frozen_bytes);
    layout.frozen_bytes =
        checked_add(layout.frozen_bytes, round_up(table.at(id).num_bytes, kAlign));
  }
  const int world_size = table.world_size();
  layout.cuts.assign(static_cast<size_t>(world_size) + 1, 0);
  layout.cuts.back() = layout.frozen_bytes;
  for (int rank = 1; rank < world_size; ++rank) {
    const int64_t even = checked_mul(layout.frozen_bytes, rank) / world_size;
    for (const auto& [id, offset] : layout.offsets) {
      if (offset > even)
        break;
      const int64_t step = granule(table.at(id));
      const int64_t inside = std::min(even - offset, table.at(id).num_bytes);
      layout.cuts[static_cast<size_t>(rank)] = offset + inside / step * step;
    }
  }
  return layout;
}

void lay_out_trainables(const ParameterTable& table, UnitId unit, const FlatLayout& flat,
                        UnitLayout& layout) {
  int64_t next = layout.frozen_bytes;
  for (const ParameterId id : table.unit(unit).parameters) {
    const DeclaredParameter& parameter = table.at(id);
    if (!parameter.is_trainable())
      continue;
    const int64_t begin = flat.offset(parameter.trainable);
    const int64_t length = round_up(parameter.spec.shape.numel(), FlatLayout::kAlignElements);
    if (layout.runs.empty() || layout.runs.back().flat_end != begin)
      layout.runs.push_back({begin, begin, next});
    layout.runs.back().flat_end += length;
    layout.offsets.emplace(id, next);
    next = checked_add(next, length * size_of(DType::kFloat32));
  }
  layout.weights_bytes = next - layout.frozen_bytes;
}

std::vector<UnitLayout::Piece> UnitLayout::pieces(int rank, const FlatLayout::Shard& shard) const {
  std::vector<Piece> result;
  const auto r = static_cast<size_t>(rank);
  if (cuts[r] < cuts[r + 1])
    result.push_back({cuts[r], cuts[r + 1], -1});
  const int64_t fp32 = size_of(DType::kFloat32);
  for (const Run& run : runs) {
    const int64_t begin = std::max(run.flat_begin, shard.begin);
    const int64_t end = std::min(run.flat_end, shard.end);
    if (begin < end)
      result.push_back({run.offset + (begin - run.flat_begin) * fp32,
                        run.offset + (end - run.flat_begin) * fp32, begin});
  }
  return result;
}

int UnitLayout::owner_of(int64_t frozen_byte) const {
  return static_cast<int>(std::ranges::upper_bound(cuts, frozen_byte) - cuts.begin()) - 1;
}

}  // namespace shardtune::parallel
