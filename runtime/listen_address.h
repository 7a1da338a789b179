// HOST:PORT, checked before gRPC sees it: gRPC says only that binding failed, not why.
#pragma once

#include <string>

namespace trireme {

// Throws kInvalidArgument for an address that cannot be (malformed, unknown host, port out of
// range), kUnavailable for one that cannot be had now (port in use, not this machine's, no right).
void check_listen_address(const std::string& address);

}  // namespace trireme
