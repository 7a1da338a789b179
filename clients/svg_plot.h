// Plots as SVG: panels of 360 x 300 side by side on a white page.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trireme {

using Points = std::vector<std::pair<double, double>>;

// A page of `width` x `height` with a line of text at the top, up to where panels are drawn.
std::string svg_begin(int width, int height, const std::string& heading);
std::string svg_end();

struct Panel {
  std::string title, x_label, y_label;
  Points points;       // of one curve
  double y_max = 0.0;  // 0: by the points
};

// Bars side by side, each a stack of as many parts as there are colours in the legend.
struct BarPanel {
  std::string title, y_label;
  std::vector<std::string> legend;
  std::vector<std::pair<std::string, std::vector<double>>> bars;
  double mark = 0.0;  // a line across at this height; 0: none
};

// One panel, its corner at (left, top).
std::string draw(const Panel& panel, double left, double top);
std::string draw(const BarPanel& panel, double left, double top);

}  // namespace trireme
