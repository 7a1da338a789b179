#include "parallel/world.h"

#include <unistd.h>

#include <numeric>

#include "base/error.h"
#include "parallel/ledger_communicator.h"
#include "parallel/recording_communicator.h"
#include "parallel/stage_edge.h"

namespace trireme {

namespace {
constexpr int64_t kFirstMessage = 4096;  // bytes

std::vector<int32_t> all_ranks(const ParallelLayout& layout) {
  std::vector<int32_t> ranks(static_cast<size_t>(layout.world()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// Those of `count` stages from `first` on.
std::vector<int32_t> stage_ranks(const ParallelLayout& layout, int first, int count = 1) {
  std::vector<int32_t> ranks;
  for (int32_t rank : all_ranks(layout)) {
    const int stage = layout.stage_of(rank);
    if (stage >= first && stage < first + count) ranks.push_back(rank);
  }
  return ranks;
}

template <typename Group>
void write_down(std::unique_ptr<Group>& group, Ledger& ledger, std::vector<int32_t> ranks) {
  if (group == nullptr || group->size() == 1) return;
  group = make_ledger_communicator(std::move(group), ledger, std::move(ranks));
}
}  // namespace

World make_world(std::unique_ptr<Communicator> control, ParallelLayout layout) {
  if (layout.world() != control->size()) {
    fail(ErrorCode::kInvalidArgument, "layout: {} takes {} ranks, but the world has {}",
         layout.describe(), layout.world(), control->size());
  }
  World world;
  world.rank = control->rank();
  world.layout = std::move(layout);
  world.data = control->split(0, "data");
  world.tp = control->split(world.stage(), "tp");
  auto stars = connect_tcp_stars(*control, 2);
  world.doorbell = make_doorbell(world.rank, std::move(stars[0]));
  world.watch_star = std::move(stars[1]);
  world.control = std::move(control);
  world.ledger = std::make_unique<Ledger>();
  write_down(world.control, *world.ledger, all_ranks(world.layout));
  write_down(world.data, *world.ledger, all_ranks(world.layout));
  write_down(world.tp, *world.ledger, stage_ranks(world.layout, world.stage()));
  return world;
}

namespace {

// Host and device; those that there are.
std::vector<Communicator*> communicators_of(World& world) {
  std::vector<Communicator*> all;
  for (Communicator* group : {static_cast<Communicator*>(world.device_tp.get()),
                              static_cast<Communicator*>(world.device_data.get()),
                              static_cast<Communicator*>(world.device_incoming.get()),
                              static_cast<Communicator*>(world.device_outgoing.get()),
                              static_cast<Communicator*>(world.device_tokens.get()), world.tp.get(),
                              world.data.get(), world.control.get()}) {
    if (group != nullptr) all.push_back(group);
  }
  return all;
}

}  // namespace

void set_deadlines(World& world, std::chrono::milliseconds limit) {
  for (Communicator* group : communicators_of(world)) group->set_deadline(limit);
}

void abort_communicators(World& world, const std::string& reason) noexcept {
  // The device's first: the host is asked for aborts by who waits for it.
  for (Communicator* group : communicators_of(world)) {
    try {
      group->abort(reason);
    } catch (const std::exception&) {  // already down
    }
  }
}

void start_watchdog(World& world, WatchdogOptions options) {
  if (world.layout.world() == 1) return;
  std::vector<RankPlace> places(static_cast<size_t>(world.layout.world()));
  RankPlace mine;
  gethostname(mine.host, sizeof mine.host - 1);
  mine.stage = world.stage();
  mine.tensor = world.tensor_rank();
  world.control->all_gather(std::as_bytes(std::span(&mine, 1)),
                            std::as_writable_bytes(std::span(places)));
  options.abort = [&world](const std::string& reason) { abort_communicators(world, reason); };
  world.watchdog =
      std::make_unique<Watchdog>(world.rank, std::move(places), std::move(world.watch_star),
                                 *world.ledger, std::move(options));
}

void record_spans(World& world, SpanRecorder& spans) {
  const auto record = [&spans](std::unique_ptr<Communicator>& group, SpanLink link) {
    group = make_recording_communicator(std::move(group), spans, link);
  };
  record(world.control, SpanLink::kControl);
  record(world.data, SpanLink::kData);
  record(world.tp, SpanLink::kTensor);
}

StageEdge make_stage_edge(World& world) {
  if (!world.device_data) return {*world.data, world.layout};
  return {world.device_incoming.get(), world.device_outgoing.get(), world.layout, world.rank};
}

namespace {

// First-stage rank j hears from the last stage's rank j mod its size (runtime/token_return.h).
void greet_token_peers(World& world, const Buffer& memory) {
  if (!world.device_tokens) return;
  const int first = world.layout.stages.front().tensor, last = world.layout.stages.back().tensor;
  const std::span<std::byte> message(memory.data(), 64);
  if (world.first_stage()) {
    world.device_tokens->recv(message, first + world.tensor_rank() % last, 0);
    return;
  }
  for (int rank = world.tensor_rank(); rank < first; rank += last) {
    world.device_tokens->send(message, rank, 0);
  }
}

}  // namespace

namespace {

void write_down_devices(World& world) {
  Ledger& ledger = *world.ledger;
  const ParallelLayout& layout = world.layout;
  const int stage = world.stage(), last = layout.pipeline() - 1;
  write_down(world.device_data, ledger, all_ranks(layout));
  write_down(world.device_tp, ledger, stage_ranks(layout, stage));
  write_down(world.device_incoming, ledger, stage_ranks(layout, stage - 1, 2));
  write_down(world.device_outgoing, ledger, stage_ranks(layout, stage, 2));
  std::vector<int32_t> ends = stage_ranks(layout, 0);
  for (int32_t rank : stage_ranks(layout, last)) ends.push_back(rank);
  write_down(world.device_tokens, ledger, std::move(ends));
}

void connect_stage_devices(World& world, int device) {
  world.device_data = make_nccl_communicator(*world.data, device, "device data");
  // Of one family: an abort ends all, and none waits for the others' kernels.
  world.device_tp = world.device_data->split_device(world.stage(), "device tp");
  if (world.device_tp->size() == 1) world.device_tp.reset();
  StageGroups groups = connect_stages(*world.device_data, world.stage(), world.layout.pipeline());
  world.device_incoming = std::move(groups.incoming);
  world.device_outgoing = std::move(groups.outgoing);
  const bool at_an_end = world.first_stage() || world.last_stage();
  world.device_tokens = world.device_data->split_device(at_an_end ? 0 : 1, "device tokens", 1);
  if (!at_an_end) world.device_tokens.reset();
  // GPUs are connected by their first message, and its sender waits on the host for the receiver;
  // later a receiver may itself wait for a plan that this sender has still to push out.
  const Buffer memory = world.device_data->allocate_symmetric(kFirstMessage);
  StageEdge edge = make_stage_edge(world);
  const MatrixView message{memory.data(), DType::kF32, 1, kFirstMessage / 4, kFirstMessage / 4};
  if (edge.has_previous()) edge.recv(message);
  if (edge.has_next()) edge.send(message);
  greet_token_peers(world, memory);
  world.device_data->wait({});
}

}  // namespace

void connect_devices(World& world, int device) {
  if (world.layout.world() == 1) return;
  if (world.layout.pipeline() == 1) {
    world.device_tp = make_nccl_communicator(*world.tp, device, "device tp");
  } else {
    connect_stage_devices(world, device);
  }
  write_down_devices(world);
}

}  // namespace trireme
