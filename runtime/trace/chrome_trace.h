// A timeline as Chrome's trace event JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing
// draw: a process per rank with a row per lane, and one for the requests with a row for each.
#pragma once

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/trace/request_log.h"
#include "runtime/trace/timeline.h"

namespace trireme {

// `facts` (such as the layout) go into "otherData". Times are microseconds from the first span on.
void write_chrome_trace(std::ostream& out, const std::vector<RankRows>& rows,
                        const std::vector<RequestLife>& requests,
                        const std::vector<std::pair<std::string, std::string>>& facts);

}  // namespace trireme
