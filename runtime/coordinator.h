// The gRPC server: the wire (proto/) on one side, the frontend on the other.
//
// One reactor per call, one write in flight per stream: a client that does not read holds its own
// cursor over its request's record and nothing else. No call ever waits on the engine's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/engine_api.h"
#include "runtime/frontend.h"
#include "runtime/kv_cache_pool.h"
#include "runtime/model/config.h"
#include "runtime/scheduler.h"

namespace trireme {

struct CoordinatorConfig {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT, [IPV6]:PORT; port 0: any free one
  std::string port_file;                   // if set, the port is written there by serve()
  int max_message_bytes = 64 << 20;        // of one received message
  int retry_after_ms = 1000;               // told to clients when the queue is full
};

// What GetServerInfo and GetModelInfo tell.
struct ServerDescription {
  std::string version;
  std::string layout;  // as parse_layout reads it
  int32_t ranks = 1;
  std::string backend;  // e.g. "cpu avx512"
  std::string profile;
  SchedulerConfig scheduler;
  KvPoolConfig pool;
  ModelConfig model;
  std::string chat_template;
};

class Coordinator {
 public:
  // Binds and answers at once, so that a port in use is known before a model is loaded: health is
  // NOT_SERVING and every call UNAVAILABLE until serve(). Throws kInvalidArgument for an address
  // that cannot be, kUnavailable for one that cannot be had.
  explicit Coordinator(const CoordinatorConfig& config);
  ~Coordinator();  // shutdown(0)

  int port() const;
  // All three must outlive shutdown(). Once only.
  void serve(Frontend& frontend, EngineApi& engine, const ServerDescription& description);
  // Health becomes NOT_SERVING, new requests get UNAVAILABLE; live ones have `grace` to end, then
  // they are aborted. Returns when every call is over. The engine must be running meanwhile.
  void shutdown(std::chrono::milliseconds grace);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
