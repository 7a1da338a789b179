#include "clients/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

constexpr double kWidth = 300.0, kHeight = 210.0, kX = 50.0, kY = 36.0;
const char* const kColours[] = {"#1f6feb", "#d29922", "#cf222e", "#8c959f", "#1a7f37"};

// 1, 2 or 5 times a power of ten, so that about five steps cover `range`.
double tick_step(double range) {
  const double rough = std::max(range, 1e-12) / 5.0;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10.0 * power;
}

// What is common to panels: where numbers are on the page, title, labels and grid lines.
struct Frame {
  double left, top, x_max, y_max, x_step, y_step;

  Frame(double at_left, double at_top, double most_x, double most_y) : left(at_left), top(at_top) {
    x_max = most_x > 0 ? most_x : 1.0;
    y_max = most_y > 0 ? most_y : 1.0;
    x_step = tick_step(x_max);
    y_step = tick_step(y_max);
    x_max = std::ceil(x_max / x_step - 1e-9) * x_step;
    y_max = std::ceil(y_max / y_step - 1e-9) * y_step;
  }
  double px(double x) const { return left + kX + x / x_max * kWidth; }
  double py(double y) const { return top + kY + kHeight - y / y_max * kHeight; }

  std::string title(const std::string& text) const {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"title\">{}</text>\n", left + kX,
                       top + 20, text);
  }
  std::string x_grid() const {
    std::string svg;
    for (double x = 0; x <= x_max + x_step / 2; x += x_step) {
      svg += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>"
          "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4:g}</text>\n",
          px(x), py(0), py(y_max), py(0) + 16, std::round(x / x_step) * x_step);
    }
    return svg;
  }
  std::string y_grid() const {
    std::string svg;
    for (double y = 0; y <= y_max + y_step / 2; y += y_step) {
      svg += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{2:.1f}\" y2=\"{1:.1f}\" class=\"grid\"/>"
          "<text x=\"{3:.1f}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:g}</text>\n",
          px(0), py(y), px(x_max), px(0) - 6, py(y) + 4, std::round(y / y_step) * y_step);
    }
    return svg;
  }
  std::string x_label(const std::string& text) const {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                       px(x_max / 2), py(0) + 36, text);
  }
  std::string y_label(const std::string& text) const {
    return fmt::format(
        "<text transform=\"translate({:.1f},{:.1f}) rotate(-90)\" "
        "text-anchor=\"middle\">{}</text>\n",
        left + 10, py(y_max / 2), text);
  }
};

}  // namespace

std::string svg_begin(int width, int height, const std::string& heading) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n"
      "<style>.title{{font-size:13px;font-weight:bold}}.grid{{stroke:#ddd}}"
      ".curve{{fill:none;stroke:#1f6feb;stroke-width:2}}"
      ".mark{{stroke:#333;stroke-dasharray:4 3}}</style>\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n"
      "<text x=\"60\" y=\"20\">{2}</text>\n",
      width, height, heading);
}

std::string svg_end() { return "</svg>\n"; }

std::string draw(const Panel& panel, double left, double top) {
  double x_max = 0.0, y_max = panel.y_max;
  for (const auto& [x, y] : panel.points) {
    x_max = std::max(x_max, x);
    if (panel.y_max == 0.0) y_max = std::max(y_max, y);
  }
  const Frame frame(left, top, x_max, y_max);
  std::string svg = frame.title(panel.title) + frame.x_grid() + frame.y_grid();
  svg += "<polyline class=\"curve\" points=\"";
  for (const auto& [x, y] : panel.points) {
    svg += fmt::format("{:.1f},{:.1f} ", frame.px(x), frame.py(y));
  }
  return svg + "\"/>\n" + frame.x_label(panel.x_label) + frame.y_label(panel.y_label);
}

std::string draw(const BarPanel& panel, double left, double top) {
  const auto bars = static_cast<double>(panel.bars.size());
  double y_max = panel.mark;
  for (const auto& [name, parts] : panel.bars) {
    double sum = 0;
    for (const double part : parts) sum += part;
    y_max = std::max(y_max, sum);
  }
  Frame frame(left, top, bars, y_max);
  frame.x_max = std::max(bars, 1.0);
  std::string svg = frame.title(panel.title) + frame.y_grid() + frame.y_label(panel.y_label);
  for (size_t i = 0; i < panel.bars.size(); ++i) {
    const double x = static_cast<double>(i);
    double low = 0;
    for (size_t part = 0; part < panel.bars[i].second.size(); ++part) {
      const double high = low + panel.bars[i].second[part];
      svg += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n",
          frame.px(x + 0.15), frame.py(high), frame.px(x + 0.85) - frame.px(x + 0.15),
          frame.py(low) - frame.py(high), kColours[part % std::size(kColours)]);
      low = high;
    }
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                       frame.px(x + 0.5), frame.py(0) + 16, panel.bars[i].first);
  }
  if (panel.mark > 0) {
    svg += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"mark\"/>\n",
        frame.px(0), frame.py(panel.mark), frame.px(frame.x_max), frame.py(panel.mark));
  }
  for (size_t i = 0; i < panel.legend.size(); ++i) {
    const double x = left + kX + 100.0 * static_cast<double>(i);
    svg += fmt::format(
        "<rect x=\"{0:.1f}\" y=\"{1:.1f}\" width=\"10\" height=\"10\" fill=\"{2}\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\">{5}</text>\n",
        x, frame.py(0) + 28, kColours[i % std::size(kColours)], x + 14, frame.py(0) + 37,
        panel.legend[i]);
  }
  return svg;
}

}  // namespace trireme
