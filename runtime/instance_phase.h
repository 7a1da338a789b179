// Local work that every rank does at the same point of a start: an error on one becomes the same
// error on all, so that no rank goes on into a collective that will never complete.
#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace trireme {

// Collective. `work` itself must call no collective. Errors of several ranks: the lowest rank's.
void together(Communicator& control, const std::function<void()>& work);

}  // namespace trireme
