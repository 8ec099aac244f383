// The report of `audit` for a terminal: samples with their labels, and the sums.
#pragma once

#include <cstdint>
#include <string>

#include "data/audit.h"
#include "trainer/job.h"

namespace shardtune::launch {

/// kAnsi: trained tokens green, their end tokens bold, the rest by role. kNone: trained tokens
/// between double brackets.
enum class Colours { kNone, kAnsi };

/// Rows of the first epoch: what packing makes of the samples.
struct RowCounts {
  int64_t num_rows = 0;
  int64_t num_tokens = 0;
  int64_t num_steps = 0;
};
RowCounts count_rows(const trainer::Job& job);

std::string audit_legend(Colours colours);
std::string audit_sample(const trainer::Job& job, int64_t index, Colours colours);
std::string audit_sums(const trainer::Job& job, const data::DatasetAudit& audit,
                       const RowCounts& rows);

}  // namespace shardtune::launch
