// A name for what a step does, by which ranks tell that they were given the same plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace trireme {

// Not 0, and not meant against an adversary: folded 64 x 64 bit products over the words, as in
// wyhash (Wang Yi). `seed` is a hash itself, or 0.
uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t seed);

// The seed of a world's first plan; each later one's is the hash of the plan before it. So a hash
// stands for all plans up to it, and worlds of other layouts have others.
uint64_t plan_seed(std::string_view layout);

}  // namespace trireme
