#include "runtime/trace/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace trireme {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

class TraceWriter {
 public:
  TraceWriter(std::ostream& out, int64_t origin) : out_(out), origin_(origin) {}

  void name_process(int pid, const std::string& name) {
    metadata("process_name", pid, 0, fmt::format("\"name\":{}", quoted(name)));
    metadata("process_sort_index", pid, 0, fmt::format("\"sort_index\":{}", pid));
  }
  void name_row(int pid, uint64_t tid, const std::string& name) {
    metadata("thread_name", pid, tid, fmt::format("\"name\":{}", quoted(name)));
    metadata("thread_sort_index", pid, tid, fmt::format("\"sort_index\":{}", tid));
  }
  void span(int pid, uint64_t tid, const std::string& name, int64_t begin, int64_t end,
            const std::string& args) {
    event(fmt::format("{{\"name\":{},\"ph\":\"X\",\"ts\":{:.3f},\"dur\":{:.3f},\"pid\":{},"
                      "\"tid\":{},\"args\":{{{}}}}}",
                      quoted(name), static_cast<double>(begin - origin_) * 1e-3,
                      static_cast<double>(end - begin) * 1e-3, pid, tid, args));
  }

 private:
  void metadata(const char* what, int pid, uint64_t tid, const std::string& args) {
    event(fmt::format("{{\"name\":\"{}\",\"ph\":\"M\",\"pid\":{},\"tid\":{},\"args\":{{{}}}}}", what,
                      pid, tid, args));
  }
  void event(const std::string& json) {
    out_ << (first_ ? "\n" : ",\n") << json;
    first_ = false;
  }

  std::ostream& out_;
  int64_t origin_;
  bool first_ = true;
};

uint64_t row_of(Lane lane) { return static_cast<uint64_t>(lane) + 1; }

std::string name_of(const Segment& segment) {
  const Span& span = segment.span;
  if (segment.lane == Lane::kStep) return fmt::format("step {}", span.step);
  std::string name = to_string(span.kind);
  if (segment.lane == Lane::kIdle) {
    if (span.link == SpanLink::kNone) return "idle";
    name = span.kind == SpanKind::kWait
               ? fmt::format("wait for {}", to_string(span.link))
               : fmt::format("wait in {} {}", to_string(span.link), to_string(span.kind));
  } else if (span.link != SpanLink::kNone) {
    name = fmt::format("{} {}", to_string(span.link), name);
  }
  if (span.peer < 0) return name;
  // Ranks of control and data are those of the world; a tensor group's root is its own.
  return fmt::format("{} {} {}", name, span.kind == SpanKind::kSend ? "to" : "from", span.peer);
}

std::string args_of(const Span& span) {
  std::string args = fmt::format("\"step\":{}", span.step);
  if (span.bytes > 0) args += fmt::format(",\"bytes\":{}", span.bytes);
  return args;
}

void write_rank(TraceWriter& writer, const RankRows& rows) {
  const RankTrack& track = *rows.track;
  writer.name_process(track.rank, fmt::format("rank {} {} tp{} pp{}", track.rank, track.host,
                                              track.tensor_rank, track.stage));
  std::vector<bool> named;
  for (const Segment& segment : rows.segments) {
    const uint64_t row = row_of(segment.lane);
    if (named.size() <= row) named.resize(row + 1);
    if (!named[row]) writer.name_row(track.rank, row, to_string(segment.lane));
    named[row] = true;
    writer.span(track.rank, row, name_of(segment), segment.span.begin, segment.span.end,
                args_of(segment.span));
  }
}

void write_requests(TraceWriter& writer, int pid, const std::vector<RequestLife>& requests) {
  writer.name_process(pid, "requests");
  for (const RequestLife& life : requests) {
    writer.name_row(pid, life.id, fmt::format("request {}", life.id));
    for (const RequestSpan& span : life.spans) {
      const std::string name =
          span.phase == RequestPhase::kQueued   ? "queued"
          : span.phase == RequestPhase::kDecode ? "decode"
                                                : fmt::format("prefill {}-{}", span.position,
                                                              span.position + span.count);
      writer.span(pid, life.id, name, span.begin, span.end,
                  fmt::format("\"step\":{},\"position\":{},\"tokens\":{}", span.step, span.position,
                              span.count));
    }
  }
}

}  // namespace

void write_chrome_trace(std::ostream& out, const std::vector<RankRows>& rows,
                        const std::vector<RequestLife>& requests,
                        const std::vector<std::pair<std::string, std::string>>& facts) {
  int64_t origin = INT64_MAX;
  for (const RankRows& rank : rows) {
    for (const Segment& segment : rank.segments) origin = std::min(origin, segment.span.begin);
  }
  for (const RequestLife& life : requests) {
    for (const RequestSpan& span : life.spans) origin = std::min(origin, span.begin);
  }
  out << "{\"displayTimeUnit\":\"ms\",\"otherData\":{";
  for (size_t i = 0; i < facts.size(); ++i) {
    out << (i == 0 ? "" : ",") << quoted(facts[i].first) << ':' << quoted(facts[i].second);
  }
  out << "},\"traceEvents\":[";
  TraceWriter writer(out, origin);
  for (const RankRows& rank : rows) write_rank(writer, rank);
  if (!requests.empty()) write_requests(writer, static_cast<int>(rows.size()), requests);
  out << "\n]}\n";
}

}  // namespace trireme
