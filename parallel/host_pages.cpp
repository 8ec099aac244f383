#include "parallel/host_pages.h"

#include <unistd.h>

#include <algorithm>

#include "core/checked.h"

namespace shardtune::parallel {

namespace {
const int64_t kFloatBytes = size_of(DType::kFloat32);

void append_without(PageRange all, PageRange kept, std::vector<PageRange>& result) {
  if (kept.num_bytes() == 0)
    kept = {all.end, all.end};
  const PageRange before{all.begin, std::min(all.end, kept.begin)};
  const PageRange after{std::max(all.begin, kept.end), all.end};
  for (const PageRange& part : {before, after}) {
    if (part.begin < part.end)
      result.push_back(part);
  }
}
}  // namespace

PageRange pages_of(int64_t begin, int64_t end) {
  if (begin >= end)
    return {};
  const int64_t page = sysconf(_SC_PAGESIZE);
  return {begin / page * page, round_up(end, page)};
}

int64_t total_bytes(const std::vector<PageRange>& ranges) {
  int64_t total = 0;
  for (const PageRange& range : ranges)
    total += range.num_bytes();
  return total;
}

PageRange kept_frozen_pages(const UnitLayout& layout, int rank) {
  const auto r = static_cast<size_t>(rank);
  return pages_of(layout.cuts[r], layout.cuts[r + 1]);
}

std::vector<PageRange> brought_frozen_pages(const UnitLayout& layout, int rank) {
  std::vector<PageRange> result;
  append_without(pages_of(0, layout.frozen_bytes), kept_frozen_pages(layout, rank), result);
  return result;
}

PageRange kept_weight_pages(const FlatLayout::Shard& shard) {
  return pages_of(shard.begin * kFloatBytes, shard.end * kFloatBytes);
}

std::vector<PageRange> brought_weight_pages(const UnitLayout& layout,
                                            const FlatLayout::Shard& shard) {
  std::vector<PageRange> result;
  for (const UnitLayout::Run& run : layout.runs)
    append_without(pages_of(run.flat_begin * kFloatBytes, run.flat_end * kFloatBytes),
                   kept_weight_pages(shard), result);
  return result;
}

}  // namespace shardtune::parallel
