#include "clients/load_generator.h"

#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "clients/client.h"
#include "clients/client_channel.h"
#include "trireme/v1/trireme.grpc.pb.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// CPU time of this process.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& t) { return t.tv_sec + 1e-6 * t.tv_usec; };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

int32_t parse_length(const std::string& what, std::string_view text) {
  int32_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size() || value < 1) {
    fail(ErrorCode::kInvalidArgument, "{}: \"{}\" is no length (a number, LOW-HIGH or @FILE)", what,
         text);
  }
  return value;
}

int32_t draw(const LengthDistribution& lengths, std::mt19937_64& random) {
  if (!lengths.values.empty()) return lengths.values[random() % lengths.values.size()];
  const auto span = static_cast<uint64_t>(lengths.high - lengths.low + 1);
  return lengths.low + static_cast<int32_t>(random() % span);
}

int32_t longest(const LengthDistribution& lengths) {
  if (lengths.values.empty()) return lengths.high;
  return *std::max_element(lengths.values.begin(), lengths.values.end());
}

// Makes the prompts: token ids, from a text's tokens or drawn at random.
class PromptSource {
 public:
  PromptSource(const LoadConfig& config, Client& client, const v1::ModelInfo& model)
      : random_(config.seed), vocab_(model.vocab()) {
    if (!config.text_file.empty()) tokens_ = tokens_of(config.text_file, client);
    shared_ = make(static_cast<int32_t>(config.share_prefix * longest(config.prompt)));
    share_ = config.share_prefix;
  }

  std::vector<int32_t> next(int32_t length) {
    const auto shared = std::min<size_t>(static_cast<size_t>(share_ * length), shared_.size());
    std::vector<int32_t> ids(shared_.begin(), shared_.begin() + static_cast<ptrdiff_t>(shared));
    const auto own = make(length - static_cast<int32_t>(shared));
    ids.insert(ids.end(), own.begin(), own.end());
    return ids;
  }

 private:
  static std::vector<int32_t> tokens_of(const std::string& path, Client& client) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(ErrorCode::kInvalidArgument, "text file {}: it cannot be read", path);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    auto tokens = client.tokenize(text, false);
    if (tokens.empty()) fail(ErrorCode::kInvalidArgument, "text file {}: it is empty", path);
    return tokens;
  }

  std::vector<int32_t> make(int32_t length) {
    std::vector<int32_t> ids(std::max(0, length));
    size_t at = tokens_.empty() ? 0 : random_() % tokens_.size();
    for (int32_t& id : ids) {
      id = tokens_.empty() ? static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_))
                           : tokens_[at++ % tokens_.size()];
    }
    return ids;
  }

  std::mt19937_64 random_;
  int64_t vocab_;
  std::vector<int32_t> tokens_, shared_;
  double share_ = 0.0;
};

// What the requests under way and the thread that sends them share.
struct Board {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<RequestSample> samples;
  int under_way = 0;
  int ended = 0;
};

// One request under way, on gRPC's threads; owns itself until it is done.
class Call final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  Call(v1::Trireme::Stub& stub, Board& board, Clock::time_point origin, double timeout_s,
       v1::GenerateRequest request)
      : board_(board), origin_(origin), request_(std::move(request)) {
    sample_.sent = now();
    sample_.prompt_tokens = request_.token_ids().ids_size();
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::microseconds(static_cast<int64_t>(timeout_s * 1e6)));
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_delta()) take(event_.delta());
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    sample_.end = now();
    if (!status.ok()) sample_.error = status.error_message();
    if (sample_.error.empty() && !ended_) sample_.error = "the stream had no terminal event";
    {
      std::lock_guard lock(board_.mutex);
      board_.samples.push_back(std::move(sample_));
      --board_.under_way;
      ++board_.ended;
      board_.changed.notify_all();
    }
    delete this;
  }

 private:
  double now() const { return seconds(Clock::now() - origin_); }

  void take(const v1::OutputDelta& delta) {
    const double at = now();
    const int count = delta.token_ids_size();
    if (count > 0) {
      if (sample_.first < 0) {
        sample_.first = at;
      } else {
        // Tokens that came together share the time since the ones before them.
        sample_.gaps.insert(sample_.gaps.end(), count, (at - last_) / count);
      }
      last_ = at;
      sample_.output_tokens += count;
      sample_.times.insert(sample_.times.end(), count, at);
    }
    if (delta.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return;
    ended_ = true;
    sample_.cached_tokens = delta.usage().cached_tokens();
    if (delta.finish_reason() == v1::FINISH_REASON_ERROR) sample_.error = delta.error();
    if (delta.finish_reason() == v1::FINISH_REASON_ABORTED) sample_.error = "aborted";
  }

  Board& board_;
  const Clock::time_point origin_;
  const v1::GenerateRequest request_;
  grpc::ClientContext context_;
  v1::GenerateEvent event_;
  RequestSample sample_;
  double last_ = 0.0;
  bool ended_ = false;
};

// Samples GetLoad while the load runs.
class WasteMeter {
 public:
  explicit WasteMeter(const std::string& server) : client_(server), thread_([this] { run(); }) {}
  ~WasteMeter() { stop(); }
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
  }
  double waste() const { return allocated_ == 0 ? 0.0 : 1.0 - used_ / allocated_; }
  int samples() const { return samples_; }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::milliseconds(50), [this] { return stopping_; })) {
      try {
        const v1::Load load = client_.load();
        if (load.kv_tokens_allocated() == 0) continue;
        used_ += static_cast<double>(load.kv_tokens_used());
        allocated_ += static_cast<double>(load.kv_tokens_allocated());
        ++samples_;
      } catch (const Error&) {  // the requests tell of it
      }
    }
  }

  Client client_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  double used_ = 0.0, allocated_ = 0.0;
  int samples_ = 0;
  std::thread thread_;
};

// Sends `count` requests as the configuration says and waits for all to end.
class Sender {
 public:
  Sender(const LoadConfig& config, PromptSource& prompts, v1::Trireme::Stub& stub)
      : config_(config), prompts_(prompts), stub_(stub), random_(config.seed + 1) {}

  std::vector<RequestSample> send(int count, bool poisson,
                                  const std::function<void(int, int)>& progress) {
    Board board;
    const Clock::time_point origin = Clock::now();
    std::exponential_distribution<double> gap(config_.rate > 0 ? config_.rate : 1.0);
    double due = 0.0;
    std::unique_lock lock(board.mutex);
    int shown = -1;
    const auto tell = [&] {
      if (!progress || shown == board.ended) return;
      shown = board.ended;
      lock.unlock();
      progress(shown, count);
      lock.lock();
    };
    for (int sent = 0; sent < count; ++sent) {
      if (poisson) {
        due += gap(random_);
        const auto at = origin + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(due));
        while (Clock::now() < at) {
          board.changed.wait_until(lock, at);
          tell();
        }
      } else {
        while (board.under_way >= config_.concurrency) {
          board.changed.wait(lock);
          tell();
        }
      }
      ++board.under_way;
      lock.unlock();
      new Call(stub_, board, origin, config_.timeout_s, make_request());
      lock.lock();
    }
    while (board.under_way > 0) {
      board.changed.wait(lock);
      tell();
    }
    return std::move(board.samples);
  }

 private:
  v1::GenerateRequest make_request() {
    v1::GenerateRequest request;
    const auto ids = prompts_.next(draw(config_.prompt, random_));
    request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    request.mutable_stop()->set_max_tokens(draw(config_.output, random_));
    request.mutable_stop()->set_ignore_eos(true);
    request.mutable_sampling()->set_temperature(config_.temperature);
    request.mutable_sampling()->set_seed(random_());
    return request;
  }

  const LoadConfig& config_;
  PromptSource& prompts_;
  v1::Trireme::Stub& stub_;
  std::mt19937_64 random_;
};

void check_config(const LoadConfig& config, const v1::ModelInfo& model) {
  if (config.requests < 1 || config.warmup < 0 || config.concurrency < 1 || config.rate < 0 ||
      !std::isfinite(config.rate) || config.share_prefix < 0 || config.share_prefix > 1 ||
      !(config.timeout_s > 0)) {
    fail(ErrorCode::kInvalidArgument,
         "load: requests and concurrency must be positive, warm-up and rate not negative, the "
         "shared part of prompts from 0 to 1, the timeout positive");
  }
  const int32_t most = longest(config.prompt) + longest(config.output);
  if (most > model.max_context()) {
    fail(ErrorCode::kInvalidArgument,
         "prompts and outputs of up to {} tokens are over the server's context of {}", most,
         model.max_context());
  }
}

void summarize(LoadReport& report) {
  std::vector<double> ttft, tpot, gaps, latency;
  std::map<std::string, int> errors;
  for (const RequestSample& s : report.samples) {
    report.duration = std::max(report.duration, s.end);
    if (!s.error.empty()) {
      ++report.failed;
      ++errors[s.error];
      continue;
    }
    ++report.ok;
    report.prompt_tokens += s.prompt_tokens;
    report.cached_tokens += s.cached_tokens;
    report.output_tokens += s.output_tokens;
    ttft.push_back(s.first - s.sent);
    latency.push_back(s.end - s.sent);
    if (s.output_tokens > 1) tpot.push_back((s.end - s.first) / (s.output_tokens - 1));
    gaps.insert(gaps.end(), s.gaps.begin(), s.gaps.end());
  }
  report.errors.assign(errors.begin(), errors.end());
  report.ttft = percentiles(std::move(ttft));
  report.time_per_output_token = percentiles(std::move(tpot));
  report.inter_token_latency = percentiles(std::move(gaps));
  report.latency = percentiles(std::move(latency));
  if (report.duration <= 0) return;
  report.output_tokens_per_s = static_cast<double>(report.output_tokens) / report.duration;
  report.total_tokens_per_s =
      static_cast<double>(report.output_tokens + report.prompt_tokens) / report.duration;
  report.requests_per_s = report.ok / report.duration;
}

}  // namespace

LengthDistribution parse_lengths(const std::string& what, const std::string& text) {
  LengthDistribution lengths;
  if (!text.empty() && text[0] == '@') {
    std::ifstream file(text.substr(1));
    if (!file) fail(ErrorCode::kInvalidArgument, "{}: {} cannot be read", what, text.substr(1));
    std::string word;
    while (file >> word) lengths.values.push_back(parse_length(what, word));
    if (lengths.values.empty()) {
      fail(ErrorCode::kInvalidArgument, "{}: {} has no lengths", what, text.substr(1));
    }
    return lengths;
  }
  const size_t dash = text.find('-');
  lengths.low = parse_length(what, std::string_view(text).substr(0, dash));
  lengths.high = dash == std::string::npos
                     ? lengths.low
                     : parse_length(what, std::string_view(text).substr(dash + 1));
  if (lengths.low > lengths.high) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is above {}", what, lengths.low, lengths.high);
  }
  return lengths;
}

// The smallest value that at least the share p of all values does not exceed.
Percentiles percentiles(std::vector<double> values) {
  Percentiles result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  const auto at = [&](double p) {
    const auto rank = static_cast<size_t>(std::ceil(p * static_cast<double>(values.size())));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  result.p50 = at(0.50);
  result.p90 = at(0.90);
  result.p99 = at(0.99);
  result.max = values.back();
  result.mean =
      std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  return result;
}

LoadReport run_load(const LoadConfig& config,
                    const std::function<void(int ended, int all)>& progress) {
  Client client(config.server);
  if (!client.healthy()) {
    fail(ErrorCode::kUnavailable, "{}: no healthy server answers there", config.server);
  }
  const v1::ModelInfo model = client.model_info();
  check_config(config, model);
  PromptSource prompts(config, client, model);
  const auto stub = v1::Trireme::NewStub(make_channel(config.server));
  Sender sender(config, prompts, *stub);
  if (config.warmup > 0) sender.send(config.warmup, false, {});
  LoadReport report;
  report.config = config;
  WasteMeter meter(config.server);
  const double cpu = cpu_seconds();
  report.samples = sender.send(config.requests, config.rate > 0, progress);
  report.client_cpu = cpu_seconds() - cpu;
  meter.stop();
  report.kv_waste = meter.waste();
  report.kv_samples = meter.samples();
  summarize(report);
  return report;
}

}  // namespace trireme
