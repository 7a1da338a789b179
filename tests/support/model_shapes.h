// The shape of a model that exists nowhere, for tests of what only looks at shapes.
#pragma once

#include "parallel/layout.h"

namespace trireme {

inline ModelShape small_shape() {
  return {.layers = 6,
          .hidden = 64,
          .q_heads = 8,
          .kv_heads = 4,
          .head_dim = 16,
          .ffn = 256,
          .vocab = 515};
}

}  // namespace trireme
