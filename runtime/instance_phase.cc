#include "runtime/instance_phase.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"

namespace trireme {
namespace {

struct Outcome {
  int32_t failed = 0;
  int32_t code = 0;
  char host[64] = {};
  char message[944] = {};
};

void record(Outcome& outcome, ErrorCode code, const char* what) {
  outcome.failed = 1;
  outcome.code = static_cast<int32_t>(code);
  gethostname(outcome.host, sizeof(outcome.host) - 1);
  std::strncpy(outcome.message, what, sizeof(outcome.message) - 1);
}

Outcome outcome_of(const std::function<void()>& work) {
  Outcome outcome;
  try {
    work();
  } catch (const Error& error) {
    record(outcome, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    record(outcome, ErrorCode::kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    record(outcome, ErrorCode::kInternal, error.what());
  }
  return outcome;
}

}  // namespace

void together(Communicator& control, const std::function<void()>& work) {
  if (control.size() == 1) return work();
  const Outcome mine = outcome_of(work);
  std::vector<Outcome> all(static_cast<size_t>(control.size()));
  control.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  const auto failed = [](const Outcome& outcome) { return outcome.failed != 0; };
  const auto first = std::find_if(all.begin(), all.end(), failed);
  if (first == all.end()) return;
  const auto code = static_cast<ErrorCode>(first->code);
  // What all ranks say needs no rank; what one says does.
  const bool everywhere = std::all_of(all.begin(), all.end(), [&](const Outcome& outcome) {
    return std::strcmp(outcome.message, first->message) == 0;
  });
  if (everywhere || first == all.begin()) throw Error(code, first->message);
  fail(code, "rank {} {}: {}", first - all.begin(), first->host, first->message);
}

}  // namespace trireme
