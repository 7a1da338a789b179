#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

#include "base/error.h"

namespace trireme::log {

void init(const std::string& level, const std::string& who) {
  const auto parsed = spdlog::level::from_str(level == "warn" ? "warning" : level);
  if (parsed == spdlog::level::off && level != "off") {
    fail(ErrorCode::kInvalidArgument,
         "log level: '{}' is not one of debug, info, warn, error, off", level);
  }
  auto logger = std::make_shared<spdlog::logger>("trireme",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(parsed);
  logger->set_pattern(who.empty() ? "%H:%M:%S.%e %^%l%$ %v" : "%H:%M:%S.%e %^%l%$ [" + who + "] %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace trireme::log
