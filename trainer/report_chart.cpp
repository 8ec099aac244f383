#include "trainer/report_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/json.h"
#include "io/text.h"

namespace shardtune::trainer {
namespace {

// Of the drawing; the page stretches it.
constexpr double kWidth = 1000.0;
constexpr double kHeight = 300.0;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

struct Axis {
  double low = 0.0;
  double high = 1.0;
  double share(double value) const { return (value - low) / (high - low); }
};

Axis axis_over(double low, double high, bool from_zero) {
  if (from_zero)
    low = std::min(low, 0.0);
  // All values equal: a band around them.
  if (!(high > low)) {
    const double room = low == 0.0 ? 1.0 : std::abs(low) * 0.1;
    return {from_zero ? std::min(low, 0.0) : low - room, high + room};
  }
  const double room = (high - low) * 0.05;
  return {from_zero && low >= 0.0 ? low : low - room, high + room};
}

/// Round numbers inside the axis, four or so.
std::vector<double> ticks(const Axis& axis, int wanted, double smallest_step = 0.0) {
  const double raw = (axis.high - axis.low) / wanted;
  const double magnitude = std::pow(10.0, std::floor(std::log10(raw)));
  double step = magnitude * 10.0;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (magnitude * factor >= raw) {
      step = magnitude * factor;
      break;
    }
  }
  step = std::max(step, smallest_step);
  std::vector<double> values;
  for (int i = 0; i <= 2 * wanted; ++i) {
    const double value = (std::ceil(axis.low / step) + i) * step;
    if (value > axis.high)
      break;
    values.push_back(std::abs(value) < step * 1e-9 ? 0.0 : value);
  }
  return values;
}

Axis x_axis(const std::vector<ChartSeries>& series) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const ChartSeries& line : series) {
    for (const ChartPoint& point : line.points) {
      low = std::min(low, point.x);
      high = std::max(high, point.x);
    }
  }
  return high > low ? Axis{low, high} : Axis{low - 1.0, low + 1.0};
}

std::string at(const Axis& x, const Axis& y, double px, double py) {
  return fmt::format("{:.1f},{:.1f}", x.share(px) * kWidth, (1.0 - y.share(py)) * kHeight);
}

std::string grid_and_labels(const Axis& x, const Axis& y, ValueFormat format, std::string& lines) {
  std::string labels;
  // Round numbers of what is written: mebibytes, percent.
  const double unit = format == ValueFormat::kBytes ? 1 << 20 : 1.0;
  for (const double tick : ticks({y.low / unit, y.high / unit}, 4)) {
    const double value = tick * unit;
    const double top = 1.0 - y.share(value);
    lines += fmt::format("<path class=\"grid\" d=\"M0,{0:.1f}H{1}\"/>", top * kHeight, kWidth);
    labels += fmt::format("<span class=\"y\" style=\"top:{:.2f}%\">{}</span>", top * 100.0,
                          format_value(value, format));
  }
  for (const double value : ticks(x, 5, 1.0)) {
    labels += fmt::format("<span class=\"x\" style=\"left:{:.2f}%\">{:.0f}</span>",
                          x.share(value) * 100.0, value);
  }
  return labels;
}

/// The values under the pointer, as texts: the script does no formatting.
std::string pointer_data(const Chart& chart, const Axis& x) {
  io::Json json = io::Json::object();
  json.set("low", x.low);
  json.set("high", x.high);
  io::Json series = io::Json::array();
  for (const ChartSeries& line : chart.series) {
    io::Json xs = io::Json::array();
    io::Json ys = io::Json::array();
    for (const ChartPoint& point : line.points) {
      xs.push_back(point.x);
      ys.push_back(format_value(point.y, chart.format));
    }
    io::Json entry = io::Json::object();
    entry.set("name", line.label);
    entry.set("x", std::move(xs));
    entry.set("y", std::move(ys));
    series.push_back(std::move(entry));
  }
  json.set("series", std::move(series));
  std::string text;
  for (const char c : json.dump())
    text += c == '<' ? std::string("\\u003c") : std::string(1, c);  // never ends the script
  return "<script type=\"application/json\">" + text + "</script>";
}

std::string legend(const std::vector<ChartSeries>& series) {
  if (series.size() < 2)
    return "";
  std::string text;
  for (const ChartSeries& line : series)
    text += fmt::format("<span class=\"key {}\">{}</span>", line.style, escape_html(line.label));
  return "<span class=\"legend\">" + text + "</span>";
}

std::string figure(const Chart& chart, const Axis& x, const std::string& drawing,
                   const std::string& labels) {
  return fmt::format(
      "<figure><figcaption><b>{}</b>{}<output></output></figcaption>\n"
      "<div class=\"plot\"><svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-label=\"{}\">{}</svg>{}<i class=\"cursor\"></i></div>{}</figure>\n",
      escape_html(chart.title), legend(chart.series), kWidth, kHeight, escape_html(chart.title),
      drawing, labels, pointer_data(chart, x));
}

std::string path_of(const char* element_class, const std::string& style, const std::string& d) {
  return fmt::format("<path class=\"{} {}\" d=\"{}\"/>", element_class, style, d);
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string result;
  const auto append_escaped = [&](std::string_view part) {
    for (const char c : part) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '&')
        result += "&amp;";
      else if (c == '<')
        result += "&lt;";
      else if (c == '>')
        result += "&gt;";
      else if (c == '"')
        result += "&quot;";
      else if (c == '\'')
        result += "&#39;";
      else if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f)
        result += kReplacement;
      else
        result += c;
    }
  };
  while (const auto bad = io::find_invalid_utf8(text)) {
    append_escaped(text.substr(0, static_cast<size_t>(*bad)));
    result += kReplacement;
    text.remove_prefix(static_cast<size_t>(*bad) + 1);
  }
  append_escaped(text);
  return result;
}

std::string format_value(double value, ValueFormat format) {
  switch (format) {
    case ValueFormat::kBytes:
      if (std::abs(value) >= 1e4 * (1 << 20))
        return fmt::format("{:.2f} GiB", value / (1 << 30));
      return fmt::format("{:.0f} MiB", value / (1 << 20));
    case ValueFormat::kPercent:
      return fmt::format("{:.3g}%", value * 100.0);
    case ValueFormat::kMilliseconds:
      return fmt::format("{:.4g} ms", value);
    case ValueFormat::kPlain:
      break;
  }
  return std::abs(value) >= 1000.0 && std::abs(value) < 1e9 ? fmt::format("{:.0f}", value)
                                                            : fmt::format("{:.4g}", value);
}

std::string line_chart(const Chart& chart) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const ChartSeries& line : chart.series) {
    for (const ChartPoint& point : line.points) {
      low = std::min(low, point.low);
      high = std::max(high, point.high);
    }
  }
  if (!(high >= low))
    return "";
  const Axis x = x_axis(chart.series);
  const Axis y = axis_over(low, high, chart.from_zero);
  std::string drawing;
  const std::string labels = grid_and_labels(x, y, chart.format, drawing);
  for (const ChartSeries& line : chart.series) {
    std::string upper, lower, middle;
    bool has_band = false;
    for (size_t i = 0; i < line.points.size(); ++i) {
      const ChartPoint& point = line.points[i];
      const char* command = i == 0 ? "M" : "L";
      middle += command + at(x, y, point.x, point.y);
      upper += command + at(x, y, point.x, point.high);
      const ChartPoint& back = line.points[line.points.size() - 1 - i];
      lower += "L" + at(x, y, back.x, back.low);
      has_band = has_band || point.high > point.low;
    }
    if (has_band)
      drawing += path_of("band", line.style, upper + lower + "Z");
    // A line of no length with round ends is a dot.
    if (line.points.size() == 1)
      middle += "h0.01";
    drawing += path_of(line.points.size() == 1 ? "line dot" : "line", line.style, middle);
  }
  return figure(chart, x, drawing, labels);
}

std::string stacked_chart(const Chart& chart) {
  if (chart.series.empty() || chart.series[0].points.empty())
    return "";
  const Axis x = x_axis(chart.series);
  const Axis y{0.0, 1.0};
  const size_t count = chart.series[0].points.size();
  std::vector<double> base(count, 0.0);
  std::string drawing;
  for (const ChartSeries& part : chart.series) {
    std::string upper, lower;
    // One point alone is drawn over the whole width.
    for (size_t i = 0; i < count; ++i) {
      const double left = count == 1 ? x.low : part.points[i].x;
      const double right = count == 1 ? x.high : part.points[i].x;
      const double top = std::min(1.0, base[i] + part.points[i].y);
      upper += (i == 0 ? "M" : "L") + at(x, y, left, top) + "L" + at(x, y, right, top);
      lower = "L" + at(x, y, right, base[i]) + "L" + at(x, y, left, base[i]) + lower;
      base[i] = top;
    }
    drawing += path_of("area", part.style, upper + lower + "Z");
  }
  std::string lines;
  const std::string labels = grid_and_labels(x, y, chart.format, lines);
  return figure(chart, x, drawing + lines, labels);
}

}  // namespace shardtune::trainer
