// Logging: spdlog on stderr, so that stdout stays free for a command's result.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace trireme::log {

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

// Sends every log line to stderr as `HH:MM:SS.mmm LEVEL [who] message`.
// `who` names the rank, e.g. "rank 3 n2 tp1 pp0"; empty in single-process tools.
// `level`: "debug", "info", "warn", "error" or "off"; anything else throws kInvalidArgument.
void init(const std::string& level, const std::string& who = "");

}  // namespace trireme::log
