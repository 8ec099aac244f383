// audit: the tokens a run would train on, before it trains on them.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "launch/audit_text.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/verbs.h"
#include "parallel/communicator.h"
#include "trainer/job.h"

namespace shardtune::launch {
namespace {

Colours colours_of_output() {
  const char* no_color = std::getenv("NO_COLOR");
  const bool is_plain = isatty(STDOUT_FILENO) == 0 || (no_color != nullptr && *no_color != '\0');
  return is_plain ? Colours::kNone : Colours::kAnsi;
}

io::Json sample_json(const trainer::Job& job, const data::Sample& sample) {
  const data::Record& record = job.train_set.records[static_cast<size_t>(sample.record)];
  const auto roles = data::token_roles(record, sample, *job.tokenizer, job.chat.get());
  io::Json tokens = io::Json::array();
  for (size_t i = 0; i < sample.ids.size(); ++i) {
    io::Json token = io::Json::object();
    token.set("id", static_cast<int64_t>(sample.ids[i]));
    token.set("text", job.tokenizer->decode({sample.ids[i]}, {}));
    token.set("role", data::name_of(roles[i]));
    token.set("trained", sample.trained[i] != 0);
    tokens.push_back(std::move(token));
  }
  io::Json json = io::Json::object();
  json.set("file", record.file);
  json.set("line", record.line);
  json.set("tokens", std::move(tokens));
  return json;
}

io::Json document(const trainer::Job& job, const data::DatasetAudit& audit, const RowCounts& rows,
                  int64_t num_shown) {
  const data::DatasetStats& stats = job.train_set.stats;
  io::Json json = io::Json::object();
  json.set("chat_template", job.chat ? io::Json(job.chat->name()) : io::Json());
  json.set("num_samples", stats.num_samples);
  json.set("num_eval_samples", job.eval_set.stats.num_samples);
  json.set("num_tokens", stats.num_tokens);
  json.set("num_trained_tokens", stats.num_trained_tokens);
  io::Json roles = io::Json::object();
  for (size_t i = 0; i < data::kNumTokenRoles; ++i) {
    io::Json role = io::Json::object();
    role.set("num_tokens", audit.roles[i].num_tokens);
    role.set("num_trained_tokens", audit.roles[i].num_trained);
    roles.set(std::string(data::name_of(static_cast<data::TokenRole>(i))), std::move(role));
  }
  json.set("roles", std::move(roles));
  json.set("num_answers", audit.num_runs);
  json.set("num_answers_with_end", audit.num_ended_runs);
  json.set("num_truncated", stats.num_truncated);
  json.set("num_truncated_answers", stats.num_truncated_answers);
  json.set("num_rows", rows.num_rows);
  json.set("row_fill", static_cast<double>(rows.num_tokens) /
                           static_cast<double>(rows.num_rows * job.config.data.max_length));
  json.set("steps_in_epoch", rows.num_steps);
  io::Json samples = io::Json::array();
  for (int64_t i = 0; i < num_shown; ++i)
    samples.push_back(sample_json(job, job.train_set.samples[static_cast<size_t>(i)]));
  json.set("samples", std::move(samples));
  return json;
}

}  // namespace

int run_audit(Arguments arguments) {
  CommandLine line("audit CONFIG.yaml [--samples N] [--set section.key=value]... [--json]",
                   "Shows the first samples as a run would train on them, and counts tokens by "
                   "role, end tokens, truncated answers and how full rows are. Reads no weights. "
                   "Fails where train would refuse the data.");
  line.positional("CONFIG.yaml", "the configuration; configs/ holds examples");
  line.value("samples", "N", "samples to show (default 3)");
  line.repeated("set", "KEY=VALUE", "overrides a key, e.g. data.max_length=512");
  line.flag("json", "print one JSON document");
  line.threads_option();
  if (!line.parse(arguments))
    return 0;
  const int64_t wanted = line.integer_or("samples", 3, {0, 100'000});
  const trainer::RunConfig config =
      trainer::load_config(line.required("CONFIG.yaml"), line.all("set"));
  line.apply_threads(config.parallel.threads);
  const auto comm = parallel::make_single_communicator();
  trainer::Job job(config, *comm);
  trainer::read_data(job);
  const auto audit = data::audit_dataset(job.train_set, *job.tokenizer, job.chat.get());
  const RowCounts rows = count_rows(job);
  const int64_t shown = std::min(wanted, job.train_set.stats.num_samples);
  if (line.has("json")) {
    print_json(document(job, audit, rows, shown));
  } else {
    const Colours colours = colours_of_output();
    if (shown > 0)
      print(audit_legend(colours));
    for (int64_t i = 0; i < shown; ++i)
      print(audit_sample(job, i, colours));
    print(audit_sums(job, audit, rows));
    flush_output();
  }
  trainer::require_trainable(job);
  return 0;
}

}  // namespace shardtune::launch
