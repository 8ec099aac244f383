// plan: what a run will need, before it starts. No weights are read.
#include <algorithm>

#include "core/log.h"
#include "core/parallel_for.h"
#include "core/topology.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/verbs.h"
#include "parallel/communicator.h"
#include "trainer/job.h"
#include "trainer/memory.h"
#include "trainer/offload.h"
#include "trainer/plan_text.h"

namespace shardtune::launch {
namespace {

constexpr int64_t kMaxRanks = 4096;

/// Threads of a rank as launch/run gives them: the cores shared out.
void set_threads_of_a_rank(const CommandLine& line, int64_t configured, int ranks) {
  line.apply_threads(configured);
  if (!line.has("threads") && configured == 0)
    set_num_threads(std::max(1, num_usable_cores() / ranks));
}

io::Json document(const trainer::Job& job, const trainer::PlanFunction& plan,
                  const trainer::HostLimit& host) {
  const trainer::PlanChoice configured = trainer::configured_choice(job.config);
  io::Json json = trainer::plan_json(plan(configured), host);
  const auto cheapest = trainer::cheapest_that_fits(plan, configured, host);
  json.set("cheapest", cheapest ? trainer::plan_json(*cheapest, host) : io::Json());
  io::Json suggestions = io::Json::array();
  if (!trainer::fits(plan(configured), host)) {
    for (const auto& suggestion : trainer::suggest(plan, configured, host))
      suggestions.push_back(suggestion.options);
  }
  json.set("suggestions", std::move(suggestions));
  return json;
}

std::string report(const trainer::Job& job, const trainer::PlanFunction& plan,
                   const trainer::HostLimit& host) {
  const trainer::PlanChoice configured = trainer::configured_choice(job.config);
  const trainer::RunPlan own = plan(configured);
  std::string text = trainer::plan_table(job, own, host) + "\n\n" +
                     trainer::stages_table(plan, configured, host) + "\n";
  if (!trainer::fits(own, host))
    text += trainer::suggestions_text(trainer::suggest(plan, configured, host)) + "\n";
  return text;
}

}  // namespace

int run_plan(Arguments arguments) {
  CommandLine line("plan CONFIG.yaml [--ranks N] [--hosts H] [--set section.key=value]... [--json]",
                   "Predicts memory per rank, traffic and disk of a run, and whether it fits this "
                   "machine, from configuration, file headers and data. Reads no weights.");
  line.positional("CONFIG.yaml", "the configuration; configs/ holds examples");
  line.value("ranks", "N", "ranks (default 1)");
  line.value("hosts", "H", "hosts like this machine that share out the ranks (default 1)");
  line.repeated("set", "KEY=VALUE", "overrides a key, e.g. training.micro_batch_size=1");
  line.flag("json", "print the plan as one JSON document");
  line.threads_option();
  if (!line.parse(arguments))
    return 0;
  const auto ranks = static_cast<int>(line.integer_or("ranks", 1, {1, kMaxRanks}));
  const auto hosts = static_cast<int>(line.integer_or("hosts", 1, {1, ranks}));
  const int ranks_of_host = (ranks + hosts - 1) / hosts;
  const trainer::RunConfig config =
      trainer::load_config(line.required("CONFIG.yaml"), line.all("set"));
  set_threads_of_a_rank(line, config.parallel.threads, ranks_of_host);
  const auto comm = parallel::make_single_communicator();
  const int64_t before_inputs = trainer::resident_bytes();
  trainer::Job job(config, *comm);
  trainer::check_inputs(job);
  const trainer::RankPlacement placement{
      ranks, ranks_of_host, parallel::MpiOptions::transport_from_environment() != "mpi"};
  const trainer::ProcessBytes process = trainer::measure_process(job, before_inputs, placement);
  const trainer::PlanFunction plan = trainer::plan_function(job, placement, process);
  const trainer::HostLimit host{ranks_of_host, usable_memory_bytes(),
                                trainer::free_swap_space(config)};
  if (line.has("json"))
    print_json(document(job, plan, host));
  else
    print(report(job, plan, host));
  return 0;
}

}  // namespace shardtune::launch
