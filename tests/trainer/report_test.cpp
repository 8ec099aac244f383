// The report without a browser: that the page is well formed, whole, refers to nothing outside, and
// survives whatever stands in a run's directory.
#include "trainer/report.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/trainer/tiny_model.h"
#include "trainer/metrics.h"
#include "trainer/report_chart.h"

namespace shardtune::trainer {
namespace {

using testing::read_text;
using testing::TempFolder;
using testing::write_text;

namespace fs = std::filesystem;

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

size_t count(const std::string& text, std::string_view part) {
  size_t number = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++number;
  return number;
}

StepMetrics step_of(int64_t step, size_t ranks = 1) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.result.loss = 2.0 + 1.0 / static_cast<double>(step);
  metrics.result.grad_norm = 0.5;
  metrics.result.learning_rate = 1e-4;
  metrics.result.num_tokens = 2048;
  metrics.seconds = 0.055;
  metrics.limit_fraction = 0.75;
  for (size_t r = 0; r < ranks; ++r) {
    RankStep rank;
    rank.peak_rss_bytes = 300 << 20;
    for (size_t i = 0; i < kNumActivities; ++i)
      rank.times[i] = 1e-3 * static_cast<double>(i + 1 + r);
    metrics.ranks.push_back(rank);
  }
  return metrics;
}

/// Every element is closed in order; the text of scripts and styles is none of its business.
void expect_balanced(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at)) {
    const size_t end = page.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = page.substr(at + 1, end - at - 1);
    at = end;
    const bool closes = tag.starts_with("/");
    const std::string name =
        tag.substr(closes ? 1 : 0, tag.find_first_of(" /", 1) - (closes ? 1 : 0));
    if (closes) {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ(open.back(), name);
      open.pop_back();
    } else if (!tag.ends_with("/") && name != "meta" && name != "!doctype") {
      open.push_back(name);
    }
    if (!closes && (name == "script" || name == "style"))
      at = page.find("</" + name, at);
  }
  EXPECT_TRUE(open.empty());
}

void expect_sound(const std::string& page) {
  expect_balanced(page);
  EXPECT_TRUE(page.starts_with("<!doctype html>"));
  EXPECT_TRUE(page.ends_with("</html>\n"));
  for (const char* outside : {"http", "url(", "@import", "src=", "<link", "<img", "<iframe"})
    EXPECT_FALSE(has(page, outside)) << outside;
  EXPECT_FALSE(has(page, "nan")) << page.substr(page.find("nan") - 40, 80);
  EXPECT_FALSE(has(page, "inf,"));
}

class Report : public ::testing::Test {
 protected:
  fs::path path(const std::string& name = "") const { return folder_.path() / name; }
  void write_steps(int64_t steps, size_t ranks = 1) const {
    std::string text;
    for (int64_t step = 1; step <= steps; ++step)
      text += metrics_line(step_of(step, ranks)) + "\n";
    write_text(path("metrics.jsonl"), text);
  }
  std::string page() const {
    write_report(path(), path("out.html"));
    return read_text(path("out.html"));
  }

  TempFolder folder_;
};

TEST_F(Report, ShowsCurvesTimesResultsWarningsAndConfiguration) {
  std::string text;
  for (int64_t step = 1; step <= 20; ++step) {
    StepMetrics metrics = step_of(step, 3);
    if (step % 5 == 0)
      metrics.eval_loss = 2.25;
    text += metrics_line(metrics) + "\n";
  }
  write_text(path("metrics.jsonl"), text);
  write_text(path("resolved_config.yaml"), "training:\n  seed: 42\n");
  write_text(path("train.log"),
             "2026-11-28 07:14:08 I plan: 20 steps\n2026-11-28 07:14:09 W something is odd\n");
  fs::create_directory(path("adapter"));
  const std::string html = page();
  expect_sound(html);
  for (const char* title :
       {"Loss", "Gradient norm", "Learning rate", "Tokens per second",
        "Share of the machine&#39;s limit", "Peak memory of a rank", "Share of a step (rank 0)"})
    EXPECT_TRUE(has(html, "<b>" + std::string(title) + "</b>")) << title;
  EXPECT_EQ(count(html, "<svg "), 7u);
  EXPECT_EQ(count(html, "<script type=\"application/json\">"), 7u);
  EXPECT_EQ(count(html, "class=\"bar\""), 3u) << "one of each rank";
  for (const char* part : {"linears", "attention", "head", "adapters", "optimizer", "communication",
                           "units", "data", "idle"})
    EXPECT_TRUE(has(html, "<path class=\"area " + std::string(part) + "\"")) << part;
  for (const char* text_part :
       {"20</b><span>steps done", "2.05</b><span>last training loss",
        "2.25</b><span>lowest evaluation loss", "75%</b><span>of the machine",
        "300 MiB</b><span>peak memory", "something is odd", "seed: 42", "came to its end"})
    EXPECT_TRUE(has(html, text_part)) << text_part;
  EXPECT_FALSE(has(html, "Each point stands for"));
}

TEST_F(Report, AKilledRunHasItsWholeLines) {
  write_steps(5);
  write_text(path("metrics.jsonl"), read_text(path("metrics.jsonl")) + "{\"step\": 6, \"lo");
  const std::string html = page();
  expect_sound(html);
  EXPECT_TRUE(has(html, "5</b><span>steps done"));
  EXPECT_TRUE(has(html, "cut off, as a kill leaves it"));
  EXPECT_TRUE(has(html, "did not come to its end"));
  EXPECT_TRUE(has(html, "train.log is not there"));
}

TEST_F(Report, ARunWithoutAStepHasAPageToo) {
  write_text(path("metrics.jsonl"), "");
  const std::string html = page();
  expect_sound(html);
  EXPECT_TRUE(has(html, "No step was logged"));
  EXPECT_FALSE(has(html, "<svg"));
  write_steps(1);
  expect_sound(page());
}

TEST_F(Report, EscapesWhatFilesSay) {
  write_steps(3);
  const std::string evil = "</pre></script><script>alert(1)</script><img src=x onerror='a()'>&";
  write_text(path("resolved_config.yaml"), "name: \"" + evil + "\"\n");
  write_text(path("train.log"), "2026-11-28 07:14:09 W " + evil + "\xff\xc3\x00\x1b[31m red\n");
  const fs::path run = path("<b>run & co");
  fs::create_directory(run);
  for (const char* name : {"metrics.jsonl", "resolved_config.yaml", "train.log"})
    fs::rename(path(name), run / name);
  write_report(run, path("out.html"));
  std::string html = read_text(path("out.html"));
  EXPECT_FALSE(has(html, "<script>alert"));
  EXPECT_FALSE(has(html, "<img"));
  EXPECT_FALSE(has(html, "\x1b"));
  EXPECT_FALSE(has(html, "\xff"));
  EXPECT_TRUE(has(html, "&lt;script&gt;alert(1)"));
  EXPECT_TRUE(has(html, "<h1>&lt;b&gt;run &amp; co</h1>"));
  expect_balanced(html);
}

TEST_F(Report, StrangeMetricsAreCountedAndLeftOut) {
  const std::string good = metrics_line(step_of(7)) + "\n";
  write_text(
      path("metrics.jsonl"),
      "not json\n[1, 2]\n{\"step\": \"1\"}\n{\"step\": 1, \"loss\": 1e999}\n"
      "{\"step\": 2, \"loss\": null, \"time_ms\": [1], \"rank_time_ms\": {\"linears\": 3}}\n"
      "{\"step\": 3, \"loss\": \"</script>\", \"eval_loss\": {}, \"time_ms\": {\"head\": -5}}\n"
      "{\"step\": 4, \"loss\": 1e308, \"grad_norm\": -1e308, \"time_ms\": {\"head\": 1e308}}\n"
      "{\"step\": 5, \"loss\": 1e299}\n{\"step\": 6, \"loss\": -1e299}\n" +
          good + good + "{\"step\": 9223372036854775807}\n" + std::string(2 << 20, 'x') + "\n");
  const std::string html = page();
  expect_sound(html);
  EXPECT_TRUE(has(html, "lines of metrics.jsonl could not be read")) << html.substr(0, 9000);
  EXPECT_FALSE(has(html, "\"</script>"));
}

TEST_F(Report, LargeRunsAreThinnedWithoutLosingAPeak) {
  ThinnedRows rows(2);
  for (int64_t step = 1; step <= 100'000; ++step) {
    const double values[] = {step == 77'777 ? 1000.0 : 1.0, std::nan("")};
    rows.add(static_cast<double>(step), values);
  }
  ASSERT_LE(rows.rows().size(), ThinnedRows::kMaxRows);
  EXPECT_GE(rows.rows().size(), ThinnedRows::kMaxRows / 2);
  EXPECT_EQ(rows.per_row(), 128);
  int64_t num_steps = 0;
  double largest = 0.0;
  for (const ThinnedRow& row : rows.rows()) {
    EXPECT_EQ(row.first_x, static_cast<double>(num_steps + 1));
    num_steps += row.count;
    EXPECT_EQ(row.last_x, static_cast<double>(num_steps));
    EXPECT_EQ(row.cells[1].count, 0);
    largest = std::max(largest, row.cells[0].max);
  }
  EXPECT_EQ(num_steps, 100'000);
  EXPECT_EQ(largest, 1000.0);
  EXPECT_NEAR(rows.total(0).mean, 1.0 + 999.0 / 100'000, 1e-9);
  EXPECT_EQ(rows.total(0).max, 1000.0);

  write_steps(3000);
  const std::string html = page();
  expect_sound(html);
  EXPECT_TRUE(has(html, "Each point stands for 4 logged steps"));
  EXPECT_TRUE(has(html, "class=\"band main\""));
  EXPECT_LT(html.size(), 1u << 20);
}

TEST_F(Report, OfManyRanksTheExtremesAreShown) {
  write_steps(4, kMaxListedRanks + 1);
  const std::string html = page();
  expect_sound(html);
  EXPECT_TRUE(has(html, "Over the ranks"));
  EXPECT_FALSE(has(html, "By rank"));
}

TEST_F(Report, SaysWhatIsWrongWithItsInput) {
  const auto code_of = [&](const fs::path& folder) {
    try {
      read_run(folder);
    } catch (const Error& error) {
      EXPECT_TRUE(has(error.what(), folder.string())) << error.what();
      return error.exit_code();
    }
    return ExitCode::kOk;
  };
  EXPECT_EQ(code_of(path("none")), ExitCode::kMissingInput);
  EXPECT_EQ(code_of(path()), ExitCode::kMissingInput);
  write_text(path("file"), "x");
  EXPECT_EQ(code_of(path("file")), ExitCode::kMissingInput);
  write_text(path("metrics.jsonl"), "a\nb\n");
  EXPECT_EQ(code_of(path()), ExitCode::kDamagedInput);
  write_steps(1);
  EXPECT_EQ(code_of(path()), ExitCode::kOk);
  EXPECT_THROW(write_report(path(), path("no/such/folder.html")), WriteError);
}

}  // namespace
}  // namespace shardtune::trainer
