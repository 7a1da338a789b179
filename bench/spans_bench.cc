// What a recorded span costs, and one that nobody records, beside two looks at the clock.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/spans.h"

namespace trireme {
namespace {

constexpr int kSpans = 1 << 18, kRounds = 9;

// ns for each of kSpans calls: the least of a few rounds.
template <typename Work>
double nanoseconds(Work work) {
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t begin = SpanRecorder::now();
    work();
    best = std::min(best, static_cast<double>(SpanRecorder::now() - begin) / kSpans);
  }
  return best;
}

// Keeps the compiler from leaving a loop out.
inline void keep(const void* value) { asm volatile("" : : "r"(value) : "memory"); }

double scopes(SpanRecorder* recorder) {
  return nanoseconds([recorder] {
    SpanRecorder* seen = recorder;
    for (int i = 0; i < kSpans; ++i) {
      asm volatile("" : "+r"(seen));
      const SpanScope scope(seen, SpanKind::kAllReduce, SpanLink::kTensor, -1, 4096);
      keep(&scope);
    }
  });
}

void print(const char* name, double value, double baseline) {
  std::printf(
      "{\"name\": \"%s\", \"value\": %.2f, \"unit\": \"ns\", \"baseline\": %.2f, "
      "\"ratio\": %.3f}\n",
      name, value, baseline, value / baseline);
}

void run() {
  const double clock = nanoseconds([] {
    int64_t sum = 0;
    for (int i = 0; i < kSpans; ++i) {
      sum += SpanRecorder::now();
      sum -= SpanRecorder::now();
    }
    keep(&sum);
  });
  SpanRecorder recorder({1, 1}, size_t{kSpans} * (kRounds + 1));
  recorder.leave();
  recorder.enter(1);
  print("span, recorded", scopes(&recorder), clock);
  if (recorder.dropped() > 0) std::fprintf(stderr, "spans were dropped\n");
  print("span, nobody records", scopes(nullptr), clock);
}

}  // namespace
}  // namespace trireme

int main() { trireme::run(); }
