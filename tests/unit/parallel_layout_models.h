// Models that the tests of layouts cut, and what their refusals say.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "parallel/layout.h"

namespace trireme {

inline ModelShape smollm2() {
  return {.layers = 30,
          .hidden = 576,
          .q_heads = 9,
          .kv_heads = 3,
          .head_dim = 64,
          .ffn = 1536,
          .vocab = 49152,
          .ffn_multiple = 32,
          .tied_embeddings = true};
}

inline ModelShape llama70b() {
  return {.layers = 80,
          .hidden = 8192,
          .q_heads = 64,
          .kv_heads = 8,
          .head_dim = 128,
          .ffn = 28672,
          .vocab = 128256,
          .ffn_multiple = 256};
}

inline LayoutSpec even(int tensor, int pipeline) {
  return {std::vector<StageSpec>(static_cast<size_t>(pipeline), StageSpec{tensor, 0})};
}

template <typename Call>
inline std::string refusal(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted";
  return "";
}

}  // namespace trireme
