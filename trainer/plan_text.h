// A plan as people read it in a terminal, and as JSON.
#pragma once

#include <string>
#include <vector>

#include "io/json.h"
#include "trainer/plan_search.h"

namespace shardtune::trainer {

/// "612.4 MiB", "13.2 GiB".
std::string bytes_text(int64_t bytes);

/// The block of one number of ranks: what is planned, the rows of rank 0, and whether it fits.
/// Lines without a newline at the end of the last.
std::string plan_table(const Job& job, const RunPlan& plan, const HostLimit& host);

/// Peak of a rank for every stage and with or without recompute, beside the configured choice.
std::string stages_table(const PlanFunction& plan, const PlanChoice& configured,
                         const HostLimit& host);

/// "three ways to fit" as lines, or what to do where there is none.
std::string suggestions_text(const std::vector<Suggestion>& suggestions);

io::Json traffic_json(const StepTraffic& traffic);
io::Json plan_json(const RunPlan& plan, const HostLimit& host);

/// What `train` throws when a run is predicted not to fit.
[[noreturn]] void throw_not_fitting(const Job& job, const RunPlan& plan, const PlanFunction& again,
                                    const HostLimit& host);

}  // namespace shardtune::trainer
