// Loads of random requests that run beside the engine of this process: what `bench` and `trace`
// give the model to do.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "launch/command.h"

namespace trireme {

struct LoadRequest {
  int32_t prompt = 128;  // random tokens
  int32_t tokens = 32;   // to generate
  float temperature = 0.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float frequency_penalty = 0.0f;
};

// `requests` equal ones, greedy.
std::vector<LoadRequest> even_load(int32_t requests, int32_t prompt, int32_t tokens);

struct LoadTimes {
  using Clock = std::chrono::steady_clock;
  Clock::time_point start, all_started, end;
  int64_t tokens_after_start = 0;  // generated between all_started and end

  double seconds() const { return std::chrono::duration<double>(end - start).count(); }
  double decode_rate() const {  // tokens/s while all requests had started
    return static_cast<double>(tokens_after_start) /
           std::chrono::duration<double>(end - all_started).count();
  }
};

// Runs all requests at once, until they have ended or `enough` (optional; asked every millisecond
// or so) says so: then they are aborted. A request that ends with an error throws.
LoadTimes run_load(Frontend& frontend, const Instance& instance,
                   const std::vector<LoadRequest>& load, uint64_t seed,
                   const std::function<bool()>& enough = {});

}  // namespace trireme
