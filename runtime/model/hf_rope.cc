#include "runtime/model/hf_rope.h"

#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/model/config_check.h"

namespace trireme {
namespace {

constexpr double kLargest = 1e12;

// One number above 0 for each rotated pair.
std::vector<float> rope_factors(const JsonFields& fields, const char* key, int rotary_dim) {
  const Json* list = fields.find(key);
  std::vector<float> factors;
  if (list != nullptr && list->is_array()) {
    for (const Json& item : *list) {
      const auto factor = item.is_number() ? item.get<float>() : 0.0f;
      if (factor > 0.0f && std::isfinite(factor)) factors.push_back(factor);
    }
  }
  if (list == nullptr || factors.size() != list->size() ||
      factors.size() != static_cast<size_t>(rotary_dim / 2)) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is not a list of {} positive numbers", fields.what(),
         key, rotary_dim / 2);
  }
  return factors;
}

void parse_long_rope(const JsonFields& fields, const RopeDefaults& defaults, RopeConfig& rope) {
  const auto original = fields.integer("original_max_position_embeddings", 2, limits::kId)
                            .value_or(defaults.original_context);
  if (original < 2) {
    fail(ErrorCode::kDataLoss, "{}: field 'original_max_position_embeddings' is missing",
         fields.what());
  }
  const double ratio =
      static_cast<double>(defaults.longest_context) / static_cast<double>(original);
  rope.magnitude =
      static_cast<float>(fields.number("attention_factor", 0.0, kLargest)
                             .value_or(static_cast<double>(long_rope_magnitude(
                                 fields.number("factor", 1e-3, kLargest).value_or(ratio),
                                 static_cast<double>(original)))));
  auto shorter = rope_factors(fields, "short_factor", rope.rotary_dim);
  set_long_rope(rope, std::move(shorter), rope_factors(fields, "long_factor", rope.rotary_dim),
                original, defaults.served_context);
}

}  // namespace

RopeConfig parse_rope(const JsonFields& fields, const RopeDefaults& defaults, int head_dim) {
  RopeConfig rope;
  rope.theta = fields.number("rope_theta", 1.0, kLargest).value_or(defaults.theta);
  const double partial =
      fields.number("partial_rotary_factor", 0.0, 1.0).value_or(defaults.partial);
  if (partial != 1.0 && !defaults.may_be_partial) {
    fail(ErrorCode::kUnimplemented, "{}: field 'partial_rotary_factor': only 1 is supported",
         fields.what());
  }
  rope.rotary_dim = static_cast<int>(head_dim * partial);
  if (partial != 1.0 && (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0)) {
    fail(ErrorCode::kDataLoss, "{}: field 'partial_rotary_factor': {} of a head of {} rotate",
         fields.what(), rope.rotary_dim, head_dim);
  }
  auto type = fields.string("rope_type");
  if (!type) type = fields.string("type");
  if (!type || *type == "default") return rope;
  if (*type == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
    rope.factor = fields.required_number("factor", 1e-3, kLargest);
  } else if (*type == "llama3") {
    rope.scaling = RopeConfig::Scaling::kLlama3;
    rope.factor = fields.required_number("factor", 1e-3, kLargest);
    rope.low_freq_factor = fields.required_number("low_freq_factor", 1e-3, kLargest);
    rope.high_freq_factor = fields.required_number("high_freq_factor", 1e-3, kLargest);
    rope.original_context =
        fields.required_number("original_max_position_embeddings", 1.0, kLargest);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fail(ErrorCode::kDataLoss, "{}: field 'high_freq_factor' is not above 'low_freq_factor'",
           fields.what());
    }
  } else if (defaults.may_be_long && (*type == "longrope" || *type == "su")) {
    parse_long_rope(fields, defaults, rope);
  } else {
    fail(ErrorCode::kUnimplemented,
         "{}: rope type '{}' is not known; known are default, linear, llama3{}", fields.what(),
         printable(*type), defaults.may_be_long ? ", longrope" : "");
  }
  return rope;
}

}  // namespace trireme
