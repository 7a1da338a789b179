#include "runtime/step_plan.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "base/error.h"

static_assert(std::endian::native == std::endian::little, "the encoding is little-endian memory");

namespace trireme {
namespace {

// First bytes of a message; they change with the format.
constexpr uint32_t kPlanMagic = 0x314c5054;    // "TPL1"
constexpr uint32_t kResultMagic = 0x31535254;  // "TRS1"

constexpr uint8_t kSample = 1;
constexpr uint8_t kPromptLogprobs = 2;

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : out_(out) { out_.clear(); }

  template <typename T>
  void value(T value) {
    static_assert(std::is_arithmetic_v<T>);
    bytes(&value, sizeof(T));
  }
  template <typename T>
  void list(const std::vector<T>& values) {
    static_assert(std::is_arithmetic_v<T>);
    value(static_cast<uint32_t>(values.size()));
    bytes(values.data(), values.size() * sizeof(T));
  }

 private:
  void bytes(const void* data, size_t size) {
    if (size == 0) return;
    const size_t at = out_.size();
    out_.resize(at + size);
    std::memcpy(out_.data() + at, data, size);
  }

  std::vector<std::byte>& out_;
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const char* what) : bytes_(bytes), what_(what) {}

  template <typename T>
  T value() {
    T result;
    take(&result, sizeof(T));
    return result;
  }
  // The length of a list whose elements take at least `element_bytes` each: checked against what
  // is left, so that a broken length allocates nothing.
  size_t count(size_t element_bytes) {
    const size_t result = value<uint32_t>();
    if (result > bytes_.size() / element_bytes) {
      fail(ErrorCode::kInternal, "{}: a list of {} elements in {} bytes", what_, result,
           bytes_.size());
    }
    return result;
  }
  template <typename T>
  void list(std::vector<T>& values) {
    static_assert(std::is_arithmetic_v<T>);
    values.resize(count(sizeof(T)));
    take(values.data(), values.size() * sizeof(T));
  }
  void check(bool valid, const char* field) const {
    if (!valid) fail(ErrorCode::kInternal, "{}: {} is out of range", what_, field);
  }
  void finish() const {
    if (!bytes_.empty()) {
      fail(ErrorCode::kInternal, "{}: {} bytes too many", what_, bytes_.size());
    }
  }

 private:
  void take(void* to, size_t size) {
    if (size > bytes_.size()) {
      fail(ErrorCode::kInternal, "{}: cut short: {} bytes wanted, {} left", what_, size,
           bytes_.size());
    }
    if (size == 0) return;
    std::memcpy(to, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }

  std::span<const std::byte> bytes_;
  const char* what_;
};

void write_sampling(Writer& out, const SamplingParams& params) {
  out.value(params.temperature);
  out.value(params.top_k);
  out.value(params.top_p);
  out.value(params.min_p);
  out.value(params.repetition_penalty);
  out.value(params.presence_penalty);
  out.value(params.frequency_penalty);
  out.value(static_cast<uint32_t>(params.logit_bias.size()));
  for (const auto& [token, bias] : params.logit_bias) {
    out.value(token);
    out.value(bias);
  }
  out.list(params.allowed_tokens);
  out.list(params.banned_tokens);
  out.value(params.seed);
  out.value(params.max_tokens);
  out.value(params.min_tokens);
  out.list(params.stop_ids);
  out.value(params.logprobs);
  out.value(params.prompt_logprobs);
}

void read_sampling(Reader& in, SamplingParams& params) {
  params.temperature = in.value<float>();
  params.top_k = in.value<int32_t>();
  params.top_p = in.value<float>();
  params.min_p = in.value<float>();
  params.repetition_penalty = in.value<float>();
  params.presence_penalty = in.value<float>();
  params.frequency_penalty = in.value<float>();
  params.logit_bias.resize(in.count(sizeof(int32_t) + sizeof(float)));
  for (auto& [token, bias] : params.logit_bias) {
    token = in.value<int32_t>();
    bias = in.value<float>();
  }
  in.list(params.allowed_tokens);
  in.list(params.banned_tokens);
  params.seed = in.value<uint64_t>();
  params.max_tokens = in.value<int32_t>();
  params.min_tokens = in.value<int32_t>();
  in.list(params.stop_ids);
  params.logprobs = in.value<int32_t>();
  params.prompt_logprobs = in.value<int32_t>();
}

void write_init(Writer& out, const SlotInit& init) {
  out.value(init.slot);
  out.value(init.output_index);
  out.value(init.prompt_tokens);
  write_sampling(out, init.sampling);
  out.value(static_cast<uint32_t>(init.blocks.size()));
  for (const std::vector<int32_t>& table : init.blocks) out.list(table);
  out.list(init.history);
}

void read_init(Reader& in, SlotInit& init) {
  init.slot = in.value<SlotId>();
  in.check(init.slot >= 0, "slot");
  init.output_index = in.value<uint32_t>();
  init.prompt_tokens = in.value<int32_t>();
  in.check(init.prompt_tokens >= 0, "prompt_tokens");
  read_sampling(in, init.sampling);
  init.blocks.resize(in.count(sizeof(uint32_t)));
  for (std::vector<int32_t>& table : init.blocks) in.list(table);
  in.list(init.history);
}

void write_row(Writer& out, const PlanRow& row) {
  out.value(row.slot);
  out.value(row.position);
  out.value(row.count);
  out.value(row.token_begin);
  out.value(row.block_begin);
  out.value(row.block_count);
  out.value(static_cast<uint8_t>((row.sample ? kSample : 0) |
                                 (row.prompt_logprobs ? kPromptLogprobs : 0)));
  out.value(row.next_token);
}

constexpr size_t kRowBytes = 7 * sizeof(int32_t) + 1;

void read_row(Reader& in, PlanRow& row) {
  row.slot = in.value<SlotId>();
  row.position = in.value<int32_t>();
  row.count = in.value<int32_t>();
  row.token_begin = in.value<int32_t>();
  row.block_begin = in.value<int32_t>();
  row.block_count = in.value<int32_t>();
  const auto flags = in.value<uint8_t>();
  in.check((flags & ~(kSample | kPromptLogprobs)) == 0, "flags");
  row.sample = (flags & kSample) != 0;
  row.prompt_logprobs = (flags & kPromptLogprobs) != 0;
  row.next_token = in.value<int32_t>();
}

// Every index of a row lies within the plan's arrays: a worker may follow them unchecked.
void check_row(const Reader& in, const PlanRow& row, const StepPlan& plan) {
  const auto within = [](int32_t begin, int32_t count, size_t size) {
    return begin >= 0 && count >= 0 && int64_t{begin} + count <= static_cast<int64_t>(size);
  };
  in.check(row.slot >= 0, "slot");
  in.check(row.position >= 0 && row.count >= 1, "position or count");
  in.check(within(row.token_begin, row.count, plan.tokens.size()), "token_begin");
  in.check(within(row.block_begin, row.block_count, plan.blocks.size()), "block_begin");
}

void write_logprobs(Writer& out, const std::vector<TokenLogprob>& entries) {
  out.value(static_cast<uint32_t>(entries.size()));
  for (const TokenLogprob& entry : entries) {
    out.value(entry.token);
    out.value(entry.logprob);
  }
}

void read_logprobs(Reader& in, std::vector<TokenLogprob>& entries) {
  entries.resize(in.count(sizeof(int32_t) + sizeof(float)));
  for (TokenLogprob& entry : entries) {
    entry.token = in.value<int32_t>();
    entry.logprob = in.value<float>();
  }
}

}  // namespace

void StepPlan::clear() {
  epoch = 0;
  step = 0;
  admitted.clear();
  rows.clear();
  tokens.clear();
  blocks.clear();
}

void encode(const StepPlan& plan, std::vector<std::byte>& out) {
  Writer writer(out);
  out.reserve(64 + plan.rows.size() * kRowBytes + 4 * (plan.tokens.size() + plan.blocks.size()));
  writer.value(kPlanMagic);
  writer.value(plan.epoch);
  writer.value(plan.step);
  writer.value(static_cast<uint32_t>(plan.admitted.size()));
  for (const SlotInit& init : plan.admitted) write_init(writer, init);
  writer.value(static_cast<uint32_t>(plan.rows.size()));
  for (const PlanRow& row : plan.rows) write_row(writer, row);
  writer.list(plan.tokens);
  writer.list(plan.blocks);
}

void decode(std::span<const std::byte> bytes, StepPlan& plan) {
  Reader reader(bytes, "step plan");
  reader.check(reader.value<uint32_t>() == kPlanMagic, "the format mark");
  plan.epoch = reader.value<uint64_t>();
  plan.step = reader.value<uint64_t>();
  constexpr size_t kSmallestInit = 88;  // bytes of a SlotInit whose lists are empty
  plan.admitted.resize(reader.count(kSmallestInit));
  for (SlotInit& init : plan.admitted) read_init(reader, init);
  plan.rows.resize(reader.count(kRowBytes));
  for (PlanRow& row : plan.rows) read_row(reader, row);
  reader.list(plan.tokens);
  reader.list(plan.blocks);
  for (const PlanRow& row : plan.rows) check_row(reader, row, plan);
  reader.finish();
}

void encode(const StepResult& result, std::vector<std::byte>& out) {
  Writer writer(out);
  writer.value(kResultMagic);
  writer.value(result.step);
  writer.value(static_cast<uint32_t>(result.rows.size()));
  for (const RowResult& row : result.rows) {
    writer.value(row.slot);
    writer.value(row.token);
    writer.value(row.logprob);
    write_logprobs(writer, row.top);
    write_logprobs(writer, row.prompt);
    writer.value(static_cast<uint32_t>(row.prompt_top.size()));
    for (const std::vector<TokenLogprob>& top : row.prompt_top) write_logprobs(writer, top);
  }
}

void decode(std::span<const std::byte> bytes, StepResult& result) {
  Reader reader(bytes, "step result");
  reader.check(reader.value<uint32_t>() == kResultMagic, "the format mark");
  result.step = reader.value<uint64_t>();
  result.rows.resize(reader.count(6 * sizeof(uint32_t)));
  for (RowResult& row : result.rows) {
    row.slot = reader.value<SlotId>();
    reader.check(row.slot >= 0, "slot");
    row.token = reader.value<int32_t>();
    row.logprob = reader.value<float>();
    read_logprobs(reader, row.top);
    read_logprobs(reader, row.prompt);
    row.prompt_top.resize(reader.count(sizeof(uint32_t)));
    for (std::vector<TokenLogprob>& top : row.prompt_top) read_logprobs(reader, top);
  }
  reader.finish();
}

}  // namespace trireme
