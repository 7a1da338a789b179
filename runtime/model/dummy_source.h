// Random weights of a configuration's shapes, for work on performance without a checkpoint.
#pragma once

#include <memory>
#include <string>

#include "runtime/model/weight_source.h"

namespace trireme {

// `directory` holds config.json. Matrices are bf16 and normally distributed, their rows cut from
// one pool of random numbers; norms are one.
// `context` as in open_model().
std::unique_ptr<WeightSource> make_dummy_source(const std::string& directory, int context);

}  // namespace trireme
