#include "trainer/plan_text.h"

#include <cstdio>

#include "core/parallel_for.h"

namespace shardtune::trainer {
namespace {

constexpr double kMebibyte = 1 << 20;

using parallel::ZeroStage;

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string memory_row(const char* name, int64_t bytes) {
  return formatted("  %-40s %12.1f\n", name, static_cast<double>(bytes) / kMebibyte);
}

/// What a step moves between ranks and from and to NVMe.
std::string traffic_text(const StepTraffic& traffic) {
  const parallel::StoreTraffic& store = traffic.store;
  std::string text = "  traffic of rank 0 per step: " + bytes_text(traffic.sent_bytes()) +
                     " sent, " + bytes_text(traffic.received_bytes()) + " received";
  if (store.units.received > 0)
    text += " (units " + bytes_text(store.units.received) + ", rows of tables about " +
            bytes_text(store.rows.received) + ")";
  if (traffic.read_bytes() > 0)
    text += "; NVMe: " + bytes_text(traffic.read_bytes()) + " read, " +
            bytes_text(traffic.states_written) + " written";
  return text + "\n";
}

std::string swap_row(const char* key, int64_t of_rank, int64_t of_host, int64_t free) {
  if (of_host == 0)
    return "";
  return std::string("  disk, ") + key + ": " + bytes_text(of_rank) + " on rank 0, " +
         bytes_text(of_host) + " on this machine; " + bytes_text(free) + " free\n";
}

std::string swap_text(const RunPlan& plan, const HostLimit& host) {
  const SwapBytes of_host = plan.host_swap(host.ranks);
  return swap_row("offload_param swap file", plan.swap[0].base, of_host.base, host.swap.base) +
         swap_row("offload_optimizer swap file", plan.swap[0].states, of_host.states,
                  host.swap.states);
}

const char* yes_no(bool value) { return value ? "true" : "false"; }

std::string choice_text(const PlanChoice& choice) {
  const bool shares = choice.base == parallel::FrozenPlace::kHost;
  return "ZeRO stage " + std::to_string(static_cast<int>(choice.stage)) +
         (shares ? " with one base per host" : "") + ", gradient_checkpointing " +
         yes_no(choice.gradient_checkpointing) + ", micro_batch_size " +
         std::to_string(choice.micro_batch_size);
}

std::string method_text(const quant::QuantizationOptions& quantization) {
  return quantization.method + (quantization.double_quant ? " with double_quant" : "");
}

}  // namespace

std::string bytes_text(int64_t bytes) {
  const double mebibytes = static_cast<double>(bytes) / kMebibyte;
  return mebibytes < 10240.0 ? formatted("%.1f MiB", mebibytes)
                             : formatted("%.1f GiB", mebibytes / 1024.0);
}

std::string plan_table(const Job& job, const RunPlan& plan, const HostLimit& host) {
  const auto ranks = [](int64_t count) {
    return std::to_string(count) + (count == 1 ? " rank" : " ranks");
  };
  std::string text = "plan for " + ranks(plan.ranks) + " x " + std::to_string(num_threads()) +
                     (num_threads() == 1 ? " thread: " : " threads: ") + choice_text(plan.choice) +
                     "\n";
  text += "  base " + method_text(plan.choice.quantization) + ", " +
          std::string(name_of(job.compute_dtype)) + "; longest micro-batch " +
          std::to_string(plan.longest_tokens) + " tokens; " +
          std::to_string(plan.micro_batches_per_step) + " micro-batches a step\n";
  text += formatted("  %-40s %12s\n", "memory of a rank", "MiB");
  for (const MemoryRow& row : plan.rows)
    text += memory_row(row.name.c_str(), row.bytes);
  text += memory_row("peak of rank 0 while it trains and saves", plan.run_bytes);
  text += memory_row("peak while loading", plan.load_bytes);
  if (plan.ranks > 1)
    text += memory_row("peak of any other rank", plan.other_rank_bytes);
  const int64_t total = plan.host_bytes(host.ranks);
  text += "  " + ranks(host.ranks) + " of this machine: " + bytes_text(total) + " of " +
          bytes_text(host.bytes) + ": " + (fits(plan, host) ? "fits" : "does not fit") + "\n";
  if (plan.shared_bytes > 0)
    text += "  of each rank's peak, " + bytes_text(plan.shared_bytes) +
            (plan.choice.stage == ZeroStage::k3
                 ? " are other ranks' parts of the units at work: counted once\n"
                 : " are the base that the ranks of a host share: counted once\n");
  text += traffic_text(plan.step_traffic);
  if (plan.host_sent_bytes_per_step > 0)
    text += "  between hosts: " + bytes_text(plan.host_sent_bytes_per_step) +
            " sent by a host per step, as much received\n";
  text += swap_text(plan, host);
  text += "  disk: " + bytes_text(plan.checkpoint_bytes) + " per checkpoint, at most " +
          std::to_string(plan.num_checkpoints) + "; " + bytes_text(plan.disk_bytes) +
          " in all with the adapter";
  return text;
}

std::string stages_table(const PlanFunction& plan, const PlanChoice& configured,
                         const HostLimit& host) {
  std::string text = formatted("  %-32s %10s %10s %10s %10s\n", "peak of rank 0 in MiB, ZeRO stage",
                               "0", "1", "2", "3");
  for (const bool recompute : {false, true}) {
    PlanChoice choice = configured;
    choice.gradient_checkpointing = recompute;
    text += formatted("  %-32s ",
                      recompute ? "gradient_checkpointing: true" : "gradient_checkpointing: false");
    for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2, ZeroStage::k3}) {
      const RunPlan found = plan(choice.at_stage(stage));
      text += formatted(" %10.1f", static_cast<double>(found.first_rank_bytes) / kMebibyte);
    }
    text += "\n";
  }
  const auto cheapest = cheapest_that_fits(plan, configured, host);
  return text + (cheapest ? "  cheapest that fits: " + choice_text(cheapest->choice) + " (" +
                                bytes_text(cheapest->host_bytes(host.ranks)) + " in all)"
                          : "  no stage, gradient_checkpointing and micro_batch_size fits");
}

std::string suggestions_text(const std::vector<Suggestion>& suggestions) {
  if (suggestions.empty()) {
    return "No smaller micro_batch_size, max_length or base fits either: use a machine with more "
           "memory or a smaller model.";
  }
  std::string text = "Any of these fits by the same prediction:";
  for (const Suggestion& suggestion : suggestions) {
    text += "\n  " + suggestion.options + "   (" + bytes_text(suggestion.plan.first_rank_bytes) +
            " on rank 0)";
  }
  return text;
}

io::Json traffic_json(const StepTraffic& traffic) {
  const parallel::StoreTraffic& store = traffic.store;
  io::Json json = io::Json::object();
  json.set("units_sent_bytes", store.units.sent);
  json.set("units_received_bytes", store.units.received);
  json.set("rows_sent_bytes", store.rows.sent);
  json.set("rows_received_bytes", store.rows.received);
  json.set("gradients_sent_bytes", store.gradients.sent);
  json.set("gradients_received_bytes", store.gradients.received);
  json.set("weights_sent_bytes", store.weights.sent);
  json.set("weights_received_bytes", store.weights.received);
  json.set("units_read_bytes", store.units_read);
  json.set("rows_read_bytes", store.rows_read);
  json.set("states_read_bytes", traffic.states_read);
  json.set("states_written_bytes", traffic.states_written);
  return json;
}

io::Json plan_json(const RunPlan& plan, const HostLimit& host) {
  io::Json rows = io::Json::array();
  for (const MemoryRow& row : plan.rows) {
    io::Json entry = io::Json::object();
    entry.set("name", row.name);
    entry.set("bytes", row.bytes);
    rows.push_back(std::move(entry));
  }
  io::Json json = io::Json::object();
  json.set("fits", fits(plan, host));
  json.set("ranks", plan.ranks);
  json.set("stage", static_cast<int64_t>(plan.choice.stage));
  json.set("gradient_checkpointing", plan.choice.gradient_checkpointing);
  json.set("micro_batch_size", plan.choice.micro_batch_size);
  json.set("max_length", plan.choice.max_length);
  json.set("quantization", plan.choice.quantization.method);
  json.set("memory", std::move(rows));
  json.set("peak_bytes", plan.first_rank_bytes);
  json.set("other_rank_peak_bytes", plan.other_rank_bytes);
  json.set("load_bytes", plan.load_bytes);
  json.set("shared_bytes", plan.shared_bytes);
  json.set("pool_bytes", plan.pool_bytes);
  json.set("host_bytes", plan.host_bytes(host.ranks));
  json.set("usable_bytes", host.bytes);
  json.set("longest_micro_batch_tokens", plan.longest_tokens);
  json.set("host_sent_bytes_per_step", plan.host_sent_bytes_per_step);
  json.set("step_traffic", traffic_json(plan.step_traffic));
  json.set("checkpoint_bytes", plan.checkpoint_bytes);
  json.set("disk_bytes", plan.disk_bytes);
  const SwapBytes swap = plan.host_swap(host.ranks);
  json.set("rank_swap_base_bytes", plan.swap[0].base);
  json.set("rank_swap_states_bytes", plan.swap[0].states);
  json.set("host_swap_base_bytes", swap.base);
  json.set("host_swap_states_bytes", swap.states);
  return json;
}

void throw_not_fitting(const Job& job, const RunPlan& plan, const PlanFunction& again,
                       const HostLimit& host) {
  throw OutOfMemoryError("memory: predicted not to fit: expected at most " +
                         bytes_text(host.bytes) + " for the ranks of this machine, found " +
                         bytes_text(plan.host_bytes(host.ranks)) + ". Nothing was loaded.\n" +
                         plan_table(job, plan, host) + "\n" +
                         suggestions_text(suggest(again, plan.choice, host)));
}

}  // namespace shardtune::trainer
