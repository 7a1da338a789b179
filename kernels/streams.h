// What runs beside a backend's ops on its device, and what ties the two together; and when a device
// did what.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace trireme {

// A stream of its own, in which nothing waits for the ops unless it is told to.
class SideStream {
 public:
  virtual ~SideStream() = default;
  virtual void* native() const = 0;
};

// A point in one stream for which others wait.
class StreamMark {
 public:
  virtual ~StreamMark() = default;
  // After all that is queued on `stream`.
  virtual void set(void* stream) = 0;
  // What is queued on `stream` from now on waits for the last set(); for nothing before the first.
  virtual void await(void* stream) = 0;
};

// What a device does in a step; kNothing until the next part begins.
enum class DevicePart : uint8_t { kNothing, kLayers, kSample, kSend, kReceive };

// A part began when all that was queued on its stream before had ended.
struct DeviceStamp {
  int64_t time = 0;  // ns of this host's steady clock
  DevicePart part = DevicePart::kNothing;
  uint8_t stream = 0;  // 0: the ops' own; the others are numbered as they come
};

struct DeviceTimes {
  std::vector<DeviceStamp> stamps;  // by stream, then by time
  uint64_t dropped = 0;             // the first ones, where there was no room for all
  int64_t clock_error = 0;          // ns: the device's clock may stand off by so much
  int64_t resolution = 0;           // ns: of the device's clock
};

// Stamps of the device's own clock, made by kernels of one thread between the ops: also within what
// Backend::repeat() has recorded, at every replay. Each takes the device a microsecond or two.
class StepTimer {
 public:
  virtual ~StepTimer() = default;
  // Before anything is stamped; what was recorded before is recorded anew. `stamps`: room for the
  // latest so many.
  virtual void start(size_t stamps) = 0;
  // Does nothing unless started. `stream`: null: the ops' own.
  virtual void stamp(DevicePart part, void* stream = nullptr) = 0;
  // Waits for the device and ends what start() began.
  virtual DeviceTimes stop() = 0;
};

}  // namespace trireme
