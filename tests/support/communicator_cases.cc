#include "tests/support/communicator_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace trireme {
namespace {

uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::vector<float> values(uint64_t seed, int rank, size_t count) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = test_value(seed, rank, i);
  return out;
}

std::vector<float> rank_order_sum(uint64_t seed, int ranks, size_t count) {
  std::vector<float> sum = values(seed, 0, count);
  for (int rank = 1; rank < ranks; ++rank) {
    for (size_t i = 0; i < count; ++i) sum[i] += test_value(seed, rank, i);
  }
  return sum;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void all_reduce_sizes(Communicator& ranks) {
  for (const size_t count : {0, 1, 2, 15, 16, 17, 63, 576, 4095, 4096, 65'537, 300'001}) {
    auto data = values(count, ranks.rank(), count);
    ranks.all_reduce_sum(data);
    EXPECT_TRUE(same_bits(data, rank_order_sum(count, ranks.size(), count))) << count;
  }
}

void all_reduce_random(Communicator& ranks) { check_random_all_reduces(ranks, 500, 3000, 7); }

// The sum of element i has the same bits in a vector of any length.
void all_reduce_bits_do_not_depend_on_length(Communicator& ranks) {
  const size_t longest = 200'000;
  auto whole = values(3, ranks.rank(), longest);
  ranks.all_reduce_sum(whole);
  for (const size_t count : {1, 10, 577, 5000, 40'000, 150'000}) {
    auto data = values(3, ranks.rank(), count);
    ranks.all_reduce_sum(data);
    ASSERT_EQ(std::memcmp(data.data(), whole.data(), count * sizeof(float)), 0) << count;
  }
}

void all_reduce_special_values(Communicator& ranks) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> data = {ranks.rank() == 0 ? inf : 1.0f, ranks.rank() == 0 ? inf : -inf, -0.0f};
  ranks.all_reduce_sum(data);
  EXPECT_EQ(data[0], inf);
  EXPECT_EQ(std::isnan(data[1]), ranks.size() > 1);
  EXPECT_TRUE(std::signbit(data[2]));
}

void all_reduce_takes_f32_alone(Communicator& ranks) {
  float data[4] = {1, 2, 3, 4};
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    try {
      ranks.all_reduce_sum(data, 4, dtype);
      ADD_FAILURE() << "summed " << to_string(dtype);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnimplemented);
      EXPECT_NE(std::string(error.what()).find(to_string(dtype)), std::string::npos);
    }
  }
  EXPECT_EQ(data[3], 4);
  ranks.check();  // that was refused before anything was sent
}

void all_gather_sizes(Communicator& ranks) {
  const size_t size = static_cast<size_t>(ranks.size());
  for (const size_t bytes : {0, 1, 7, 64, 4097, 70'000, 300'000}) {
    std::vector<std::byte> in(bytes), out(bytes * size);
    const auto element = [&](size_t rank, size_t i) {
      return static_cast<std::byte>(mix(rank * 1000 + bytes) + i);
    };
    for (size_t i = 0; i < bytes; ++i) in[i] = element(static_cast<size_t>(ranks.rank()), i);
    ranks.all_gather(in, out);
    bool right = true;
    for (size_t rank = 0; rank < size; ++rank) {
      for (size_t i = 0; i < bytes; ++i) right &= out[rank * bytes + i] == element(rank, i);
    }
    EXPECT_TRUE(right) << bytes;
  }
}

void all_gather_in_place(Communicator& ranks) {
  std::vector<int> all(static_cast<size_t>(ranks.size()), -1);
  all[static_cast<size_t>(ranks.rank())] = ranks.rank() * 11;
  ranks.all_gather(std::as_bytes(std::span(&all[static_cast<size_t>(ranks.rank())], 1)),
                   std::as_writable_bytes(std::span(all)));
  for (int rank = 0; rank < ranks.size(); ++rank) {
    EXPECT_EQ(all[static_cast<size_t>(rank)], rank * 11);
  }
}

void all_gather_checks_its_sizes(Communicator& ranks) {
  std::vector<std::byte> in(8), out(8 * static_cast<size_t>(ranks.size()) + 1);
  try {
    ranks.all_gather(in, out);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  }
}

void broadcast_from_every_root(Communicator& ranks) {
  for (const size_t count : {0, 1, 100, 5000, 200'000}) {
    for (int root = 0; root < ranks.size(); ++root) {
      const auto expected = values(count + 5, root, count);
      auto data = ranks.rank() == root ? expected : std::vector<float>(count, -7.0f);
      ranks.broadcast(std::as_writable_bytes(std::span(data)), root);
      EXPECT_TRUE(same_bits(data, expected)) << count << " from " << root;
    }
  }
}

// A root may run ahead of slow receivers, but never into a buffer they still read.
void many_broadcasts_in_a_row(Communicator& ranks) {
  for (uint64_t round = 0; round < 2000; ++round) {
    std::vector<uint64_t> data(1 + mix(round) % 40, ranks.rank() == 0 ? mix(round) : 0);
    ranks.broadcast(std::as_writable_bytes(std::span(data)), 0);
    for (const uint64_t word : data) ASSERT_EQ(word, mix(round)) << round;
  }
}

void mixed_collectives(Communicator& ranks) {
  for (uint64_t round = 0; round < 400; ++round) {
    const uint64_t choice = mix(round) % 4;
    const int root = static_cast<int>(mix(round + 1) % static_cast<uint64_t>(ranks.size()));
    if (choice == 0) {
      check_random_all_reduces(ranks, 1, 2000, round);
    } else if (choice == 1) {
      uint64_t word = ranks.rank() == root ? round : ~round;
      ranks.broadcast(std::as_writable_bytes(std::span(&word, 1)), root);
      ASSERT_EQ(word, round);
    } else if (choice == 2) {
      const uint64_t mine = round * 100 + static_cast<uint64_t>(ranks.rank());
      std::vector<uint64_t> all(static_cast<size_t>(ranks.size()));
      ranks.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
      for (size_t rank = 0; rank < all.size(); ++rank) ASSERT_EQ(all[rank], round * 100 + rank);
    } else {
      ranks.barrier();
    }
  }
}

}  // namespace

float test_value(uint64_t seed, int rank, size_t i) {
  const uint64_t bits = mix(seed * 0x100000001b3u + static_cast<uint64_t>(rank) * 0x10001u + i);
  return static_cast<float>(static_cast<int32_t>(bits >> 32)) * 0x1p-31f;
}

void check_random_all_reduces(Communicator& ranks, int rounds, size_t most, uint64_t seed) {
  for (int round = 0; round < rounds; ++round) {
    const uint64_t key = mix(seed + static_cast<uint64_t>(round));
    // Short ones are the rule, long ones the exception, as in decoding.
    const size_t limit = key % 64 == 0 ? most : std::min<size_t>(most, 64);
    const size_t count = mix(key) % (limit + 1);
    auto data = values(key, ranks.rank(), count);
    ranks.all_reduce_sum(data);
    ASSERT_TRUE(same_bits(data, rank_order_sum(key, ranks.size(), count)))
        << "round " << round << ", " << count << " elements";
  }
}

std::vector<CommunicatorCase> collective_cases() {
  return {
      {"AllReduceSizes", all_reduce_sizes},
      {"AllReduceRandom", all_reduce_random},
      {"AllReduceBitsDoNotDependOnLength", all_reduce_bits_do_not_depend_on_length},
      {"AllReduceSpecialValues", all_reduce_special_values},
      {"AllReduceTakesF32Alone", all_reduce_takes_f32_alone},
      {"AllGatherSizes", all_gather_sizes},
      {"AllGatherInPlace", all_gather_in_place},
      {"AllGatherChecksItsSizes", all_gather_checks_its_sizes},
      {"BroadcastFromEveryRoot", broadcast_from_every_root},
      {"ManyBroadcastsInARow", many_broadcasts_in_a_row},
      {"MixedCollectives", mixed_collectives},
  };
}

}  // namespace trireme
