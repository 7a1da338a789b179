#include "launch/bench_load.h"

#include <memory>
#include <random>
#include <utility>

#include "base/error.h"

namespace trireme {

std::vector<LoadRequest> even_load(int32_t requests, int32_t prompt, int32_t tokens) {
  LoadRequest one;
  one.prompt = prompt;
  one.tokens = tokens;
  return std::vector<LoadRequest>(static_cast<size_t>(requests), one);
}

namespace {

GenerateParams random_request(const LoadRequest& request, int32_t vocab, std::mt19937_64& random) {
  GenerateParams params;
  for (int32_t t = 0; t < request.prompt; ++t) {
    params.token_ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  }
  params.sampling.temperature = request.temperature;
  params.sampling.top_k = request.top_k;
  params.sampling.top_p = request.top_p;
  params.sampling.frequency_penalty = request.frequency_penalty;
  params.sampling.max_tokens = request.tokens;
  params.ignore_eos = true;
  return params;
}

}  // namespace

LoadTimes run_load(Frontend& frontend, const Instance& instance,
                   const std::vector<LoadRequest>& load, uint64_t seed,
                   const std::function<bool()>& enough) {
  std::mt19937_64 random(seed);
  std::vector<GenerateParams> requests;
  for (const LoadRequest& request : load) {
    requests.push_back(random_request(request, instance.config().vocab, random));
  }
  std::vector<std::unique_ptr<OutputStream>> streams;
  LoadTimes times;
  times.start = LoadTimes::Clock::now();
  for (GenerateParams& request : requests) streams.push_back(frontend.generate(std::move(request)));
  std::vector<int64_t> counts(streams.size(), 0);
  size_t started = 0, ended = 0;
  bool stopped = false;
  while (ended < streams.size()) {
    if (!stopped && enough && enough()) {
      stopped = true;
      frontend.abort_all();
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      if (streams[i]->ended()) continue;
      streams[i]->wait(std::chrono::milliseconds(streams.size() == 1 && !enough ? 1000 : 1));
      while (auto delta = streams[i]->poll()) {
        const auto tokens_now = static_cast<int64_t>(delta->token_ids.size());
        if (started == streams.size()) {
          times.tokens_after_start += tokens_now;
        } else if (counts[i] == 0 && tokens_now > 0 && ++started == streams.size()) {
          times.all_started = LoadTimes::Clock::now();  // what came with this delta came before
        }
        counts[i] += tokens_now;
        if (delta->finish == FinishReason::kError) fail(ErrorCode::kInternal, "{}", delta->error);
      }
      if (streams[i]->ended()) ++ended;
    }
  }
  times.end = LoadTimes::Clock::now();
  return times;
}

}  // namespace trireme
