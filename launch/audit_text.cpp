#include "launch/audit_text.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <vector>

namespace shardtune::launch {
namespace {

/// Of a long sample the first and last tokens are shown.
constexpr std::size_t kShownHead = 1500;
constexpr std::size_t kShownTail = 500;

constexpr std::string_view kReset = "\x1b[0m";
constexpr std::string_view kTrained = "\x1b[32m";
constexpr std::string_view kTrainedEnd = "\x1b[1;7;32m";
constexpr std::string_view kRoleColours[data::kNumTokenRoles] = {
    "\x1b[2m", "\x1b[35m", "\x1b[36m", "\x1b[39m", "\x1b[33m", "\x1b[39m"};
constexpr std::string_view kOpen = "[[";
constexpr std::string_view kClose = "]]";

/// Text of a data file for a terminal: no control character gets through, line ends can be seen.
std::string visible(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      result += "\u21b5\n";
    } else if (c == '\t') {
      result += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(byte));
      result += escape;
    } else {
      result += c;
    }
  }
  return result;
}

/// One look of neighbouring tokens; what they spell is put together before it is made visible, as
/// a token may be part of a character.
struct Look {
  bool trained = false;
  bool ends = false;
  data::TokenRole role = data::TokenRole::kTemplate;
  bool operator==(const Look&) const = default;
};

std::string painted(const Look& look, std::string_view text, Colours colours) {
  if (colours == Colours::kNone)
    return visible(text);
  const std::string_view colour = look.ends      ? kTrainedEnd
                                  : look.trained ? kTrained
                                                 : kRoleColours[static_cast<size_t>(look.role)];
  return std::string(colour) + visible(text) + std::string(kReset);
}

std::string number(int64_t value) { return std::to_string(value); }

std::string percent(int64_t part, int64_t whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f%%",
                whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0);
  return text;
}

std::string stop_names(const data::Tokenizer& tokenizer) {
  std::string names;
  for (const int32_t id : tokenizer.stop_ids())
    names += (names.empty() ? "" : ", ") + visible(tokenizer.decode({id}, {}));
  return names;
}

std::string roles_table(const data::DatasetAudit& audit, const data::DatasetStats& stats) {
  char line[96];
  std::snprintf(line, sizeof line, "%-10s %14s %14s\n", "role", "tokens", "trained");
  std::string text = line;
  const auto add = [&](std::string_view name, int64_t tokens, int64_t trained) {
    std::snprintf(line, sizeof line, "%-10s %14lld %14lld\n", std::string(name).c_str(),
                  static_cast<long long>(tokens), static_cast<long long>(trained));
    text += line;
  };
  for (std::size_t i = 0; i < data::kNumTokenRoles; ++i) {
    const data::RoleCount& count = audit.roles[i];
    if (count.num_tokens > 0)
      add(data::name_of(static_cast<data::TokenRole>(i)), count.num_tokens, count.num_trained);
  }
  add("all", stats.num_tokens, stats.num_trained_tokens);
  return text;
}

}  // namespace

RowCounts count_rows(const trainer::Job& job) {
  RowCounts rows;
  rows.num_steps = job.plan->steps_in_epoch(0);
  for (int64_t i = 0; i < rows.num_steps; ++i) {
    const data::StepPlan step = job.plan->step(i);
    rows.num_rows += step.num_rows;
    rows.num_tokens += step.num_tokens;
  }
  return rows;
}

std::string audit_legend(Colours colours) {
  if (colours == Colours::kNone)
    return "trained tokens stand between [[ and ]]\n\n";
  std::string text = "labels: " + painted({true, false, {}}, "trained", colours) + " " +
                     painted({true, true, {}}, "trained end token", colours);
  for (const auto role : {data::TokenRole::kSystem, data::TokenRole::kUser, data::TokenRole::kTool,
                          data::TokenRole::kTemplate})
    text += " " + painted({false, false, role}, data::name_of(role), colours);
  return text + "\n\n";
}

std::string audit_sample(const trainer::Job& job, int64_t index, Colours colours) {
  const data::Sample& sample = job.train_set.samples[static_cast<size_t>(index)];
  const data::Record& record = job.train_set.records[static_cast<size_t>(sample.record)];
  const auto roles = data::token_roles(record, sample, *job.tokenizer, job.chat.get());
  const auto stops = job.tokenizer->stop_ids();
  const auto num_trained = std::count(sample.trained.begin(), sample.trained.end(), 1);
  std::string text = "sample " + number(index) + ", " + visible(record.file) + ":" +
                     number(record.line) + ": " + number(static_cast<int64_t>(sample.ids.size())) +
                     " tokens, " + number(num_trained) + " trained\n";
  Look last;
  std::string run;
  bool bracket = false;
  const auto flush = [&](bool trained) {
    if (!run.empty())
      text += painted(last, run, colours);
    run.clear();
    if (colours == Colours::kNone && trained != bracket)
      text += trained ? kOpen : kClose;
    bracket = trained;
  };
  for (std::size_t i = 0; i < sample.ids.size(); ++i) {
    if (i == kShownHead && sample.ids.size() > kShownHead + kShownTail) {
      flush(false);
      i = sample.ids.size() - kShownTail;
      text += "\n... " + number(static_cast<int64_t>(i - kShownHead)) + " tokens ...\n";
    }
    const bool trained = sample.trained[i] != 0;
    const bool ends = trained && std::binary_search(stops.begin(), stops.end(), sample.ids[i]);
    const Look look{trained, ends, trained ? data::TokenRole::kTemplate : roles[i]};
    if (!(look == last) || trained != bracket)
      flush(trained);
    last = look;
    run += job.tokenizer->token_bytes(sample.ids[i]);
  }
  flush(false);
  return text + "\n\n";
}

std::string audit_sums(const trainer::Job& job, const data::DatasetAudit& audit,
                       const RowCounts& rows) {
  const data::DatasetStats& stats = job.train_set.stats;
  const std::string max_length = number(job.config.data.max_length);
  std::string text = roles_table(audit, stats) + "\n";
  text += "samples: " + number(stats.num_samples) + ", the longest " +
          number(stats.max_sample_tokens) + " tokens";
  if (!job.eval_set.samples.empty())
    text += "; for evaluation " + number(job.eval_set.stats.num_samples) + " with " +
            number(job.eval_set.stats.num_trained_tokens) + " trained tokens";
  text += "\nchat template: " + std::string(job.chat ? job.chat->name() : "none") + "\n";
  if (audit.num_runs > 0)
    text += "trained answers: " + number(audit.num_runs) + ", " + number(audit.num_ended_runs) +
            " of them (" + percent(audit.num_ended_runs, audit.num_runs) +
            ") with their end token (" + stop_names(*job.tokenizer) + ")\n";
  text += "truncated: " + number(stats.num_truncated) + " of " + number(stats.num_samples) +
          " samples at data.max_length " + max_length + ", " + number(stats.num_truncated_answers) +
          " of them lost the end of the answer\n";
  text += std::string(job.config.data.packing ? "packing" : "one sample a row") + ": " +
          number(rows.num_rows) + " rows of " + max_length + " tokens in the first epoch, " +
          percent(rows.num_tokens, rows.num_rows * job.config.data.max_length) + " full; " +
          number(rows.num_steps) + " steps\n";
  return text;
}

}  // namespace shardtune::launch
