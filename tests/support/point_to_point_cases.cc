// Messages, splits, deadlines: the second half of communicator_cases.h.
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "parallel/stage_edge.h"
#include "tests/support/communicator_cases.h"

namespace trireme {
namespace {

std::vector<std::byte> message(int from, int tag, size_t index) {
  std::vector<std::byte> bytes((index * 37 + static_cast<size_t>(tag)) % 9000);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(static_cast<size_t>(from * 31 + tag * 7) + index + i);
  }
  return bytes;
}

void messages_arrive_in_order(Communicator& ranks) {
  const size_t count = 40;
  for (int to = 0; to < ranks.size(); ++to) {
    for (int tag : {3, 4}) {
      for (size_t i = 0; i < count; ++i) ranks.send(message(ranks.rank(), tag, i), to, tag);
    }
  }
  for (int from = 0; from < ranks.size(); ++from) {
    for (int tag : {4, 3}) {  // not in the order of sending: tags are independent
      for (size_t i = 0; i < count; ++i) {
        const auto expected = message(from, tag, i);
        std::vector<std::byte> data(expected.size());
        ranks.recv(data, from, tag);
        ASSERT_EQ(data, expected) << "from " << from << " tag " << tag << " message " << i;
      }
    }
  }
}

void large_messages_around_a_ring(Communicator& ranks) {
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  std::vector<int> data(500'000), received(500'000);
  std::iota(data.begin(), data.end(), ranks.rank());
  ranks.send(std::as_bytes(std::span(data)), next, 9);
  std::fill(data.begin(), data.end(), -1);  // send() has kept what it needs
  ranks.recv(std::as_writable_bytes(std::span(received)), previous, 9);
  std::iota(data.begin(), data.end(), previous);
  EXPECT_EQ(received, data);
}

// A large message that nobody receives yet does not use up the room of those behind it.
void one_silent_peer_holds_nobody_back(Communicator& ranks) {
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  std::vector<std::byte> large(100'000), small(8);
  ranks.send(large, ranks.rank(), 6);
  for (int i = 0; i < 600; ++i) ranks.send(small, next, 7);
  for (int i = 0; i < 600; ++i) ranks.recv(small, previous, 7);
  ranks.recv(large, ranks.rank(), 6);
}

void probe_tells_the_size(Communicator& ranks) {
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  EXPECT_EQ(ranks.probe(previous, 5, Wait::kNever), -1);
  ranks.barrier();
  for (const size_t bytes : {100, 0, 20'000}) {
    ranks.send(std::vector<std::byte>(bytes), next, 5);
    EXPECT_EQ(ranks.probe(previous, 5, Wait::kForever), static_cast<int64_t>(bytes));
    EXPECT_EQ(ranks.probe(previous, 5, Wait::kNever), static_cast<int64_t>(bytes));
    std::vector<std::byte> data(bytes);
    ranks.recv(data, previous, 5);
  }
  EXPECT_EQ(ranks.probe(previous, 5, Wait::kNever), -1);
}

// User messages with any tag pass by the collectives between them.
void messages_do_not_meet_collectives(Communicator& ranks) {
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  for (int tag = 0; tag < 20; ++tag) {
    ranks.send(message(ranks.rank(), tag, 11), next, tag);
    check_random_all_reduces(ranks, 3, 5000, static_cast<uint64_t>(tag));
    const auto expected = message(previous, tag, 11);
    std::vector<std::byte> data(expected.size());
    ranks.recv(data, previous, tag);
    ASSERT_EQ(data, expected);
  }
}

// More bytes and messages under way than any eager buffer holds, while the receiver is elsewhere:
// collectives must carry the sends along.
void sends_make_progress_inside_collectives(Communicator& ranks) {
  if (ranks.size() < 2) return;
  auto pair = ranks.split(ranks.rank() < 2 ? 0 : 1, "pair");
  if (ranks.rank() > 1) return;
  std::vector<std::byte> data(1 << 20);
  if (ranks.rank() == 0) {
    for (int i = 0; i < 5; ++i) ranks.send(data, 1, 2);
  } else {
    for (int i = 0; i < 5; ++i) ranks.recv(data, 0, 2);
  }
  pair->barrier();
}

void split_by_color(Communicator& ranks) {
  const int color = ranks.rank() % 2;
  auto half = ranks.split(color, "half");
  EXPECT_EQ(half->name(), "half");
  EXPECT_EQ(half->rank(), ranks.rank() / 2);
  EXPECT_EQ(half->size(), (ranks.size() + 1 - color) / 2);
  check_random_all_reduces(*half, 100, 5000, 5);
  std::vector<float> data = {static_cast<float>(ranks.rank())};
  half->all_reduce_sum(data);
  float expected = 0;
  for (int rank = color; rank < ranks.size(); rank += 2) expected += static_cast<float>(rank);
  EXPECT_EQ(data[0], expected);
  auto whole = ranks.split(0, "whole");
  EXPECT_EQ(whole->size(), ranks.size());
  check_random_all_reduces(*whole, 10, 100, 6);
}

// Activations go down a pipeline whose stages have the tensor degrees 1, then all the rest, and
// the other way round.
void stage_edges_between_uneven_stages(Communicator& ranks) {
  if (ranks.size() < 2) return;
  const ModelShape model{.layers = 6,
                         .hidden = 8,
                         .q_heads = 24,
                         .kv_heads = 12,
                         .head_dim = 4,
                         .ffn = 64,
                         .vocab = 512};
  for (const bool wide_first : {false, true}) {
    const int wide = ranks.size() - 1;
    LayoutSpec spec;
    spec.stages = {{wide_first ? wide : 1, 0}, {wide_first ? 1 : wide, 0}};
    const ParallelLayout layout = make_layout(spec, model, ranks.size());
    StageEdge edge(ranks, layout);
    const bool first = layout.stage_of(ranks.rank()) == 0;
    EXPECT_EQ(edge.has_next(), first);
    EXPECT_EQ(edge.has_previous(), !first);
    for (int tokens = 1; tokens < 200; tokens *= 3) {
      std::vector<float> x(static_cast<size_t>(tokens * model.hidden));
      std::vector<float> expected(x.size());
      std::iota(expected.begin(), expected.end(), static_cast<float>(tokens));
      if (first) x = expected;
      const MatrixView view = matrix_f32(x.data(), tokens, model.hidden);
      if (first) {
        edge.send(view);
      } else {
        edge.recv(view);
      }
      ASSERT_EQ(x, expected);
    }
  }
}

void refuses_bad_peers(Communicator& ranks) {
  std::vector<std::byte> data(4);
  const auto code_of = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  const int beyond = ranks.size();
  EXPECT_EQ(code_of([&] { ranks.send(data, beyond, 0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { ranks.recv(data, -1, 0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { ranks.broadcast(data, beyond); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { ranks.probe(beyond, 0, Wait::kNever); }), ErrorCode::kInvalidArgument);
}

void deadline_names_the_operation(Communicator& ranks) {
  if (ranks.size() < 2) return;
  auto group = ranks.split(0, "late");
  group->set_deadline(std::chrono::milliseconds(50));
  if (ranks.rank() == 0) {
    std::vector<float> data(10);
    try {
      group->recv(std::as_writable_bytes(std::span(data)), 1, 77);
      ADD_FAILURE() << "received from nobody";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
      const std::string text = error.what();
      EXPECT_NE(text.find("late"), std::string::npos) << text;
      EXPECT_NE(text.find("recv of 40 bytes from rank 1"), std::string::npos) << text;
    }
    try {
      group->probe(1, 77, Wait::kDeadline);
      ADD_FAILURE() << "found what nobody sent";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
      const std::string text = error.what();
      EXPECT_NE(text.find("probe"), std::string::npos) << text;
      EXPECT_NE(text.find("from rank 1"), std::string::npos) << text;
    }
    try {
      group->all_reduce_sum(data);
      ADD_FAILURE() << "reduced alone";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
      const std::string text = error.what();
      EXPECT_NE(text.find("all_reduce_sum of 40 bytes"), std::string::npos) << text;
      EXPECT_NE(text.find(" 1"), std::string::npos) << text;
    }
  }
  ranks.barrier();
}

}  // namespace

std::vector<CommunicatorCase> point_to_point_cases() {
  return {
      {"MessagesArriveInOrder", messages_arrive_in_order},
      {"LargeMessagesAroundARing", large_messages_around_a_ring},
      {"OneSilentPeerHoldsNobodyBack", one_silent_peer_holds_nobody_back},
      {"ProbeTellsTheSize", probe_tells_the_size},
      {"MessagesDoNotMeetCollectives", messages_do_not_meet_collectives},
      {"SendsMakeProgressInsideCollectives", sends_make_progress_inside_collectives},
      {"SplitByColor", split_by_color},
      {"StageEdgesBetweenUnevenStages", stage_edges_between_uneven_stages},
      {"RefusesBadPeers", refuses_bad_peers},
      {"DeadlineNamesTheOperation", deadline_names_the_operation},
  };
}

}  // namespace trireme
