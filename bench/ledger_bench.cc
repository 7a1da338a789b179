// What writing an operation into the ledger costs, alone and around a collective, beside two looks
// at each clock; and what a plan's hash costs.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "parallel/ledger.h"
#include "runtime/plan_hash.h"

namespace trireme {
namespace {

constexpr int kCalls = 1 << 18, kRounds = 9;

int64_t exact() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// ns for each of `calls` calls: the least of a few rounds.
template <typename Work>
double nanoseconds(int calls, Work work) {
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t begin = exact();
    for (int i = 0; i < calls; ++i) work();
    best = std::min(best, static_cast<double>(exact() - begin) / calls);
  }
  return best;
}

// Keeps the compiler from leaving a loop out.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

void print(const char* name, double value, double baseline) {
  std::printf(
      "{\"name\": \"%s\", \"value\": %.2f, \"unit\": \"ns\", \"baseline\": %.2f, "
      "\"ratio\": %.3f}\n",
      name, value, baseline, value / baseline);
}

void run() {
  const double clock = nanoseconds(kCalls, [] {
    keep(Ledger::now());
    keep(Ledger::now());
  });
  const double exact_clock = nanoseconds(kCalls, [] {
    keep(exact());
    keep(exact());
  });
  print("two looks at the coarse clock", clock, exact_clock);
  Ledger ledger;
  const int16_t group = ledger.add_group("tp", {0, 1});
  ledger.begin_step(1, 2);
  uint64_t number = 0;
  print("ledger, one operation",
        nanoseconds(kCalls,
                    [&] {
                      ledger.begin({LedgerOp::kAllReduce, DType::kF32, group, -1, 4096, ++number});
                      ledger.end();
                    }),
        clock);
  print("ledger, one step",
        nanoseconds(kCalls,
                    [&] {
                      ledger.begin_step(++number, 3);
                      ledger.end_step(number);
                    }),
        clock);
  for (const size_t bytes : {256, 4096, 65'536}) {  // a row of decode is about 40
    const std::vector<std::byte> plan(bytes, std::byte{7});
    char name[64];
    std::snprintf(name, sizeof name, "hash of a plan of %zu bytes", bytes);
    print(name, nanoseconds(1 << 12, [&] { keep(hash_bytes(plan, number)); }), clock);
  }
}

}  // namespace
}  // namespace trireme

int main() { trireme::run(); }
