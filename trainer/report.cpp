#include "trainer/report.h"

#include <fmt/format.h>

#include <numeric>

#include "core/error.h"
#include "core/log.h"
#include "io/file.h"
#include "trainer/report_chart.h"
#include "trainer/report_page.h"

namespace shardtune::trainer {
namespace {

ChartSeries series_of(const ThinnedRows& rows, size_t column, std::string label,
                      std::string style) {
  ChartSeries series{std::move(label), std::move(style), {}};
  for (const ThinnedRow& row : rows.rows()) {
    const ThinnedCell& cell = row.cells[column];
    if (cell.count > 0)
      series.points.push_back({row.last_x, cell.mean, cell.min, cell.max});
  }
  return series;
}

std::string curve(const RunRecords& run, Metric metric, const char* title, ValueFormat format,
                  bool from_zero) {
  return line_chart(
      {title, format, from_zero, {series_of(run.steps, column_of(metric), title, "main")}});
}

std::string loss_curve(const RunRecords& run) {
  Chart chart{"Loss", ValueFormat::kPlain, false, {}};
  chart.series.push_back(series_of(run.steps, column_of(Metric::kLoss), "training", "main"));
  if (!run.evaluations.rows().empty())
    chart.series.push_back(series_of(run.evaluations, 0, "evaluation", "second"));
  return line_chart(chart);
}

std::string curves(const RunRecords& run) {
  std::string html = "<h2>Curves</h2>\n";
  if (run.steps.per_row() > 1) {
    html += fmt::format(
        "<p>Each point stands for {} logged steps: the line is their mean, the band reaches from "
        "the smallest to the largest of them.</p>\n",
        run.steps.per_row());
  }
  html += "<div class=\"charts\">\n" + loss_curve(run) +
          curve(run, Metric::kGradNorm, "Gradient norm", ValueFormat::kPlain, true) +
          curve(run, Metric::kLearningRate, "Learning rate", ValueFormat::kPlain, true) +
          curve(run, Metric::kTokensPerSecond, "Tokens per second", ValueFormat::kPlain, true) +
          curve(run, Metric::kLimitFraction, "Share of the machine's limit", ValueFormat::kPercent,
                true) +
          curve(run, Metric::kPeakRssBytes, "Peak memory of a rank", ValueFormat::kBytes, true);
  return html + "</div>\n";
}

std::string name_at(size_t activity) {
  return std::string(name_of(static_cast<Activity>(activity)));
}

// --- Where the time goes ---

std::string shares_over_steps(const RunRecords& run) {
  Chart chart{"Share of a step (rank 0)", ValueFormat::kPercent, true, {}};
  for (size_t i = 0; i < kNumActivities; ++i)
    chart.series.push_back({name_at(i), name_at(i), {}});
  for (const ThinnedRow& row : run.steps.rows()) {
    double sum = 0.0;
    for (size_t i = 0; i < kNumActivities; ++i)
      sum += std::max(0.0, row.cells[column_of(Metric::kTimes) + i].mean);
    if (!(sum > 0.0))
      continue;
    for (size_t i = 0; i < kNumActivities; ++i) {
      const double share = std::max(0.0, row.cells[column_of(Metric::kTimes) + i].mean) / sum;
      chart.series[i].points.push_back({row.last_x, share, share, share});
    }
  }
  return stacked_chart(chart);
}

std::string times_table(const RunRecords& run) {
  ActivityTimes means{};
  for (size_t i = 0; i < kNumActivities; ++i)
    means[i] = run.steps.total(column_of(Metric::kTimes) + i).mean;
  const double sum = std::accumulate(means.begin(), means.end(), 0.0);
  std::string rows;
  for (size_t i = 0; i < kNumActivities; ++i) {
    rows += fmt::format(
        "<tr><td><span class=\"key {0}\">{0}</span></td><td>{1:.1f}</td><td>{2:.1f}%</td></tr>\n",
        name_at(i), means[i], sum > 0.0 ? 100.0 * means[i] / sum : 0.0);
  }
  return "<div class=\"card\"><table><tr><th>part of a step</th><th>mean ms (rank 0)</th>"
         "<th>share</th></tr>\n" +
         rows + "</table></div>\n";
}

std::string bar_of_rank(const ActivityTimes& sums, double lines, double longest) {
  std::string parts;
  for (size_t i = 0; i < kNumActivities; ++i) {
    parts += fmt::format("<i class=\"{}\" style=\"width:{:.2f}%\" title=\"{}: {:.1f} ms\"></i>",
                         name_at(i), longest > 0.0 ? 100.0 * sums[i] / longest : 0.0, name_at(i),
                         sums[i] / lines);
  }
  return "<div class=\"bar\">" + parts + "</div>";
}

std::string times_of_ranks(const RankTimes& ranks) {
  std::string html;
  if (ranks.of_rank.size() > 1 && ranks.num_lines > 0) {
    const auto lines = static_cast<double>(ranks.num_lines);
    const auto sum = [](const ActivityTimes& times) {
      return std::accumulate(times.begin(), times.end(), 0.0);
    };
    double longest = 0.0;
    for (const ActivityTimes& times : ranks.of_rank)
      longest = std::max(longest, sum(times));
    html += "<h2>By rank</h2>\n<div class=\"card\"><div class=\"bars\">\n";
    for (size_t r = 0; r < ranks.of_rank.size(); ++r) {
      html +=
          fmt::format("<span>rank {}</span>{}<span>{:.1f} ms a step</span>\n", r,
                      bar_of_rank(ranks.of_rank[r], lines, longest), sum(ranks.of_rank[r]) / lines);
    }
    html += "</div></div>\n";
  }
  if (ranks.num_extreme_lines > 0) {
    const auto lines = static_cast<double>(ranks.num_extreme_lines);
    html +=
        "<h2>Over the ranks</h2>\n<div class=\"card\"><table><tr><th>part of a step</th>"
        "<th>smallest ms</th><th>largest ms</th></tr>\n";
    for (size_t i = 0; i < kNumActivities; ++i) {
      html += fmt::format("<tr><td>{}</td><td>{:.1f}</td><td>{:.1f}</td></tr>\n", name_at(i),
                          ranks.min[i] / lines, ranks.max[i] / lines);
    }
    html += "</table></div>\n";
  }
  return html;
}

std::string time_section(const RunRecords& run) {
  const std::string shares = shares_over_steps(run);
  if (shares.empty())
    return "";
  return "<h2>Where the time of a step goes</h2>\n<div class=\"wide\">\n" + shares +
         "</div>\n<p></p>" + times_table(run) + times_of_ranks(run.ranks);
}

// --- Results, warnings, configuration ---

std::string tile(const std::string& value, const std::string& what) {
  return "<div class=\"tile\"><b>" + value + "</b><span>" + what + "</span></div>\n";
}

std::string tiles(const RunRecords& run) {
  std::string html = tile(std::to_string(run.last_step), "steps done");
  const auto last = [&](Metric metric, ValueFormat format, const char* what) {
    const ThinnedCell& cell = run.last[column_of(metric)];
    return cell.count == 0 ? std::string() : tile(format_value(cell.mean, format), what);
  };
  html += last(Metric::kLoss, ValueFormat::kPlain, "last training loss");
  if (!run.evaluations.rows().empty()) {
    const ThinnedCell evaluations = run.evaluations.total(0);
    // The last row may stand for several; alone it is the last evaluation.
    html += tile(format_value(evaluations.min, ValueFormat::kPlain), "lowest evaluation loss");
  }
  const ThinnedCell tokens = run.steps.total(column_of(Metric::kTokens));
  const ThinnedCell step_ms = run.steps.total(column_of(Metric::kStepTimeMs));
  if (tokens.count > 0 && step_ms.mean > 0.0)
    html += tile(format_value(tokens.mean / step_ms.mean * 1e3, ValueFormat::kPlain),
                 "tokens per second, mean");
  const ThinnedCell limit = run.steps.total(column_of(Metric::kLimitFraction));
  if (limit.count > 0)
    html += tile(fmt::format("{:.0f}%", limit.mean * 100.0), "of the machine's limit, mean");
  html += last(Metric::kPeakRssBytes, ValueFormat::kBytes, "peak memory of a rank");
  const ThinnedCell joules = run.steps.total(column_of(Metric::kJoules));
  if (joules.count > 0 && tokens.mean > 0.0)
    html += tile(format_value(joules.mean / tokens.mean * 1e6, ValueFormat::kPlain),
                 "joules per million tokens");
  return "<div class=\"tiles\">\n" + html + "</div>\n";
}

std::string state_of(const RunRecords& run) {
  std::string text = run.has_adapter ? "The run came to its end and left an adapter."
                                     : "No adapter is there: the run did not come to its end, or "
                                       "is still under way.";
  if (run.is_cut)
    text += " The last line of metrics.jsonl is cut off, as a kill leaves it.";
  if (run.num_bad_lines > 0) {
    text += fmt::format(
        " {} lines of metrics.jsonl could not be read or did not follow the line "
        "before; they are left out.",
        run.num_bad_lines);
  }
  if (run.num_lines == 0)
    text += " No step was logged.";
  return "<p>" + text + "</p>\n";
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines)
    text += escape_html(line) + "\n";
  return text;
}

std::string warnings(const RunRecords& run) {
  if (!run.has_log)
    return "<h2>Warnings</h2>\n<p>train.log is not there.</p>\n";
  if (run.warnings.empty())
    return "<h2>Warnings</h2>\n<p>None in train.log.</p>\n";
  const std::string shown =
      run.num_warnings > static_cast<int64_t>(run.warnings.size())
          ? fmt::format(", the last {} of {}", run.warnings.size(), run.num_warnings)
          : "";
  return "<h2>Warnings and errors of train.log" + shown +
         "</h2>\n<div class=\"card\"><pre class=\"warnings\">" + joined(run.warnings) +
         "</pre></div>\n";
}

std::string fold(const char* title, const std::string& escaped_text) {
  return fmt::format("<details><summary>{}</summary><pre>{}</pre></details>\n", title,
                     escaped_text);
}

}  // namespace

std::string report_page(const RunRecords& run) {
  const std::string name = escape_html(run.name);
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
      name + " - shardtune</title>\n<style>" + std::string(kReportStyle) +
      "</style>\n</head>\n<body>\n<main>\n<h1>" + name + "</h1>\n" + state_of(run) + tiles(run);
  if (run.num_lines > 0)
    html += curves(run) + time_section(run);
  html += warnings(run) + "<h2>Configuration</h2>\n";
  html += run.config.empty() ? "<p>resolved_config.yaml is not there.</p>\n"
                             : fold("resolved_config.yaml", escape_html(run.config));
  if (run.has_log)
    html += fold("end of train.log", joined(run.log_end));
  return html + "</main>\n<script>" + std::string(kReportScript) + "</script>\n</body>\n</html>\n";
}

void write_report(const std::filesystem::path& folder, const std::filesystem::path& out) {
  io::write_file_durably(out, report_page(read_run(folder)));
}

ReportAtEnd::~ReportAtEnd() {
  try {
    write_report(folder_, folder_ / "report.html");
  } catch (const std::exception& error) {
    log_warning(std::string("report.html was not written: ") + error.what());
  }
}

}  // namespace shardtune::trainer
