// Charts of the report as HTML: the drawing is an SVG stretched to the width there is, its labels
// are text beside it, so that they stay readable on a phone. Values for the pointer stand in a JSON
// block that the page's script reads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardtune::trainer {

/// Text for HTML, in and outside of attributes: markup escaped, control characters and bytes that
/// are not UTF-8 replaced.
std::string escape_html(std::string_view text);

enum class ValueFormat { kPlain, kBytes, kPercent, kMilliseconds };
std::string format_value(double value, ValueFormat format);

struct ChartPoint {
  double x = 0.0;
  double y = 0.0;
  double low = 0.0;  // smallest and largest of the steps that this point stands for
  double high = 0.0;
};

struct ChartSeries {
  std::string label;
  std::string style;  // a class of the style sheet
  std::vector<ChartPoint> points;
};

struct Chart {
  std::string title;
  ValueFormat format = ValueFormat::kPlain;
  bool from_zero = false;
  std::vector<ChartSeries> series;
};

/// Lines with a band from low to high; "" when there is no point.
std::string line_chart(const Chart& chart);

/// Shares of a whole, stacked: y of all series at one x together are the whole. The series have the
/// same x. "" when there is no point.
std::string stacked_chart(const Chart& chart);

}  // namespace shardtune::trainer
