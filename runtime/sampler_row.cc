#include "runtime/sampler_row.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace trireme {
namespace {

constexpr int64_t kBlock = 64;  // logits that share a maximum
constexpr float kNone = kNoLogit;

// The maximum of `count` floats, -inf where there are none. Lanes keep it vectorizable.
float max_of(const float* values, int64_t count) {
  constexpr int kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, kNone);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    }
  }
  for (; i < count; ++i) lanes[0] = std::max(lanes[0], values[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

bool all_finite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t exponent = std::bit_cast<uint32_t>(values[i]) & 0x7f800000u;
    bad |= static_cast<uint32_t>(exponent == 0x7f800000u);
  }
  return bad == 0;
}

}  // namespace

void TokenCounts::clear() {
  entries_.clear();
  index_.clear();
}

void TokenCounts::add(int32_t token, bool generated) {
  const auto [place, fresh] = index_.try_emplace(token, entries_.size());
  if (fresh) entries_.push_back({token, 0, 0});
  Entry& entry = entries_[place->second];
  ++entry.total;
  if (generated) ++entry.generated;
}

void LogitRow::attach(float* logits, Part vocab) {
  logits_ = logits;
  vocab_ = vocab;
  touched_.clear();
  rescan_ = false;
  if (!all_finite(logits, vocab.count)) {
    std::transform(logits, logits + vocab.count, logits, legal_logit);
  }
  scan();
}

void LogitRow::scan() {
  block_max_.resize(static_cast<size_t>((vocab_.count + kBlock - 1) / kBlock));
  for (size_t b = 0; b < block_max_.size(); ++b) scan_block(static_cast<int64_t>(b));
}

void LogitRow::scan_block(int64_t block) {
  const int64_t begin = block * kBlock;
  block_max_[static_cast<size_t>(block)] =
      max_of(logits_ + begin, std::min(kBlock, vocab_.count - begin));
}

float* LogitRow::touch(int32_t token) {
  if (!holds(token)) return nullptr;
  const auto index = static_cast<int32_t>(token - vocab_.begin);
  touched_.emplace_back(index, logits_[index]);
  return logits_ + index;
}

void LogitRow::restrict_to(std::span<const int32_t> allowed) {
  for (const int32_t token : allowed) touch(token);
  std::fill(logits_, logits_ + vocab_.count, kNone);
  for (const auto& [index, raw] : touched_) logits_[index] = raw;
  rescan_ = true;
}

void LogitRow::penalize(const LogitAdjustment& adjustment) {
  const float repetition = adjustment.repetition_penalty;
  for (const TokenCount& entry : adjustment.counts) {
    float* logit = touch(entry.token);
    if (logit == nullptr) continue;
    *logit = *logit > 0.0f ? *logit / repetition : *logit * repetition;
    if (entry.generated == 0) continue;
    *logit -= adjustment.presence_penalty;
    *logit -= adjustment.frequency_penalty * static_cast<float>(entry.generated);
  }
}

void LogitRow::adjust(const LogitAdjustment& adjustment) {
  if (!adjustment.allowed.empty()) restrict_to(adjustment.allowed);
  for (const int32_t token : adjustment.banned) {
    if (float* logit = touch(token)) *logit = kNone;
  }
  for (const auto& [token, bias] : adjustment.bias) {
    if (float* logit = touch(token)) *logit += bias;
  }
  penalize(adjustment);
  for (const int32_t token : adjustment.stop) {
    if (float* logit = touch(token)) *logit = kNone;
  }
  finish_adjustments();
}

void LogitRow::finish_adjustments() {
  for (const auto& [index, raw] : touched_) logits_[index] = legal_logit(logits_[index]);
  if (rescan_ || touched_.size() > block_max_.size()) return scan();
  for (const auto& [index, raw] : touched_) scan_block(index / kBlock);
}

Candidate LogitRow::best() const {
  const auto block = std::max_element(block_max_.begin(), block_max_.end());
  if (block == block_max_.end() || *block == kNone) return {};
  const int64_t begin = (block - block_max_.begin()) * kBlock;
  const float* found = std::find(logits_ + begin, logits_ + vocab_.count, *block);
  return {*block, static_cast<int32_t>(vocab_.begin + (found - logits_))};
}

int64_t LogitRow::mass(float max, float inverse_temperature) const {
  int64_t values[kBlock];
  int64_t sum = 0;
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if ((block_max_[b] - max) * inverse_temperature < kNoMass) continue;
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    const int64_t count = std::min(kBlock, vocab_.count - begin);
    if (count == kBlock) {  // a constant count, for the vectorizer
      for (int64_t i = 0; i < kBlock; ++i) {
        values[i] = mass_of(logits_[begin + i], max, inverse_temperature);
      }
      for (int64_t i = 0; i < kBlock; ++i) sum += values[i];
    } else {
      for (int64_t i = 0; i < count; ++i) {
        sum += mass_of(logits_[begin + i], max, inverse_temperature);
      }
    }
  }
  return sum;
}

void LogitRow::bucket_masses(float max, float inverse_temperature,
                             std::span<int64_t> masses) const {
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if ((block_max_[b] - max) * inverse_temperature < kNoMass) continue;
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    const int64_t end = std::min(begin + kBlock, vocab_.count);
    for (int64_t i = begin; i < end; ++i) {
      masses[static_cast<size_t>(bucket_of(logits_[i], max, inverse_temperature))] +=
          mass_of(logits_[i], max, inverse_temperature);
    }
  }
}

void LogitRow::bucket(int which, float max, float inverse_temperature,
                      std::vector<Candidate>& out) const {
  out.clear();
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if (bucket_of(block_max_[b], max, inverse_temperature) > which) continue;
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    const int64_t end = std::min(begin + kBlock, vocab_.count);
    for (int64_t i = begin; i < end; ++i) {
      if (logits_[i] == kNone || bucket_of(logits_[i], max, inverse_temperature) != which) continue;
      out.push_back({logits_[i], static_cast<int32_t>(vocab_.begin + i)});
    }
  }
}

bool LogitRow::top(int64_t count, std::vector<Candidate>& out) const {
  out.clear();
  // The count-th largest block maximum is a floor: at least `count` logits reach it.
  float floor = kNone;
  if (count < static_cast<int64_t>(block_max_.size())) {
    std::vector<float> maxima = block_max_;
    std::nth_element(maxima.begin(), maxima.begin() + (count - 1), maxima.end(),
                     std::greater<float>());
    floor = maxima[static_cast<size_t>(count - 1)];
  }
  bool left_out = false;
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] == kNone) continue;
    if (block_max_[b] < floor) {
      left_out = true;
      continue;
    }
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    const int64_t end = std::min(begin + kBlock, vocab_.count);
    for (int64_t i = begin; i < end; ++i) {
      if (logits_[i] >= floor && logits_[i] != kNone) {
        out.push_back({logits_[i], static_cast<int32_t>(vocab_.begin + i)});
      } else if (logits_[i] != kNone) {
        left_out = true;
      }
    }
  }
  if (static_cast<int64_t>(out.size()) > count) {
    left_out = true;
    const auto better_candidate = [](const Candidate& a, const Candidate& b) {
      return better(a, b);
    };
    std::nth_element(out.begin(), out.begin() + count, out.end(), better_candidate);
    out.resize(static_cast<size_t>(count));
  }
  std::sort(out.begin(), out.end(),
            [](const Candidate& a, const Candidate& b) { return better(a, b); });
  return left_out;
}

Scored LogitRow::draw(const Draw& draw) const {
  const Candidate start = best();
  if (start.token < 0) return {};
  // The likeliest token first: it makes most others impossible without looking at their noise.
  Scored winner = draw.keeps(start) ? draw.score(start) : Scored{};
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] == kNone || !draw.keeps(block_max_[b])) continue;
    const double behind =
        winner.score - static_cast<double>(block_max_[b]) * draw.inverse_temperature;
    if (behind > kMaxGumbel) continue;
    const double limit = std::exp(-behind) * (1.0 + 1e-9);  // see gumbel(): no larger tail can win
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    const int64_t end = std::min(begin + kBlock, vocab_.count);
    for (int64_t i = begin; i < end; ++i) {
      const auto token = static_cast<int32_t>(vocab_.begin + i);
      if (uniform(draw.key, token) > limit) continue;
      const Candidate candidate{logits_[i], token};
      if (candidate.logit == kNone || !draw.keeps(candidate)) continue;
      const Scored scored = draw.score(candidate);
      if (better(scored, winner)) winner = scored;
    }
  }
  return winner;
}

float LogitRow::raw(int32_t token) const {
  const auto index = static_cast<int32_t>(token - vocab_.begin);
  for (const auto& [touched, value] : touched_) {
    if (touched == index) return value;
  }
  return logits_[index];
}

}  // namespace trireme
