// Sets of times as sorted intervals that do not touch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace trireme {

struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Interval&) const = default;
};
using Intervals = std::vector<Interval>;

// Any intervals, in any order, made a set.
inline Intervals unite(Intervals all) {
  std::erase_if(all, [](const Interval& one) { return one.end <= one.begin; });
  std::sort(all.begin(), all.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  Intervals united;
  for (const Interval& one : all) {
    if (united.empty() || one.begin > united.back().end) {
      united.push_back(one);
    } else {
      united.back().end = std::max(united.back().end, one.end);
    }
  }
  return united;
}

inline Intervals intersect(const Intervals& a, const Intervals& b) {
  Intervals both;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const Interval one{std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
    if (one.begin < one.end) both.push_back(one);
    ++(a[i].end < b[j].end ? i : j);
  }
  return both;
}

// What of a is not in b.
inline Intervals subtract(const Intervals& a, const Intervals& b) {
  Intervals rest;
  size_t j = 0;
  for (Interval one : a) {
    while (j < b.size() && b[j].end <= one.begin) ++j;
    for (size_t k = j; k < b.size() && b[k].begin < one.end; ++k) {
      if (one.begin < b[k].begin) rest.push_back({one.begin, b[k].begin});
      one.begin = std::max(one.begin, b[k].end);
    }
    if (one.begin < one.end) rest.push_back(one);
  }
  return rest;
}

inline int64_t length(const Intervals& set) {
  int64_t sum = 0;
  for (const Interval& one : set) sum += one.end - one.begin;
  return sum;
}

}  // namespace trireme
