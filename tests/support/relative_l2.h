// How far a row of numbers is from the reference's: the one measure of the parity tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>

namespace trireme {

// |got - want| / |want|; infinite where they differ in length, so that nothing passes unread.
inline double relative_l2(std::span<const float> got, std::span<const float> want) {
  if (got.size() != want.size() || want.empty()) return HUGE_VAL;
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    norm += double{want[i]} * want[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace trireme
