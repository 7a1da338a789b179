#include "runtime/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"

namespace trireme {
namespace {

constexpr uint32_t kMatchLimit = 20'000'000;    // backtracking steps of one search
constexpr uint32_t kHeapLimitKib = 128 * 1024;  // of the interpreter
constexpr size_t kJitStackMax = 8 << 20;
constexpr uint32_t kMaxPattern = 1 << 16;

std::string message_of(int code) {
  char text[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

template <typename T>
T* check(T* made) {
  if (made == nullptr) fail(ErrorCode::kResourceExhausted, "no memory for a PCRE2 object");
  return made;
}

}  // namespace

struct Regex::Code {
  std::string pattern;
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

struct Regex::Scratch::State {
  pcre2_match_data* data = check(pcre2_match_data_create(1, nullptr));
  pcre2_match_context* context = check(pcre2_match_context_create(nullptr));
  pcre2_jit_stack* stack = check(pcre2_jit_stack_create(32 << 10, kJitStackMax, nullptr));
  State() {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

Regex::Scratch::Scratch() : state_(std::make_unique<State>()) {}
Regex::Scratch::~Scratch() = default;
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

Regex::Regex(std::string_view pattern) : code_(std::make_unique<Code>()) {
  if (pattern.size() > kMaxPattern) {
    fail(ErrorCode::kDataLoss, "a pattern of {} bytes; at most {}", pattern.size(), kMaxPattern);
  }
  code_->pattern = pattern;
  const std::string rewritten = pcre2_pattern(pattern);
  int error = 0;
  size_t offset = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                              &error, &offset, nullptr);
  if (code_->code == nullptr) {
    fail(ErrorCode::kDataLoss, "pattern '{}': {}", pattern, message_of(error));
  }
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter matches
}

std::optional<Regex::Match> Regex::find(std::string_view text, size_t from,
                                        Scratch& scratch) const {
  const Scratch::State& state = *scratch.state_;
  const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                from, PCRE2_NO_UTF_CHECK, state.data, state.context);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    fail(ErrorCode::kInvalidArgument, "pattern '{}' fails at byte {} of {}: {}", code_->pattern,
         from, text.size(), message_of(found));
  }
  const size_t* bounds = pcre2_get_ovector_pointer(state.data);
  return Match{bounds[0], bounds[1] < bounds[0] ? bounds[0] : bounds[1]};
}

}  // namespace trireme
