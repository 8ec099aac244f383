// Pages of memory that the ranks of a host share, where each keeps its own part mapped and the rest
// of a unit only while it works (parallel/mapped_residency.cpp): pure arithmetic, which a run and
// its plan both use.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/unit_layout.h"

namespace shardtune::parallel {

/// Bytes [begin, end), both at multiples of the page size.
struct PageRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t num_bytes() const { return end - begin; }
};

/// The pages that hold bytes [begin, end).
PageRange pages_of(int64_t begin, int64_t end);
int64_t total_bytes(const std::vector<PageRange>& ranges);

/// The frozen bytes of a unit, from a page's begin on.
PageRange kept_frozen_pages(const UnitLayout& layout, int rank);
std::vector<PageRange> brought_frozen_pages(const UnitLayout& layout, int rank);
/// The fp32 weights of all trainables in flat order, from a page's begin on; of them a unit's.
PageRange kept_weight_pages(const FlatLayout::Shard& shard);
std::vector<PageRange> brought_weight_pages(const UnitLayout& layout,
                                            const FlatLayout::Shard& shard);

}  // namespace shardtune::parallel
