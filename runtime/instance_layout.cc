#include "runtime/instance_layout.h"

#include <vector>

#include "runtime/instance_phase.h"

namespace trireme {

ParallelLayout agree_on_layout(Communicator& control, const std::string& wanted,
                               const ModelShape& shape, const Topology& topology) {
  LayoutSpec spec;
  ParallelLayout layout;
  std::vector<int32_t> layers;
  together(control, [&] {
    spec = wanted.empty() ? choose_layout(shape, topology) : parse_layout(wanted);
    layout = make_layout(spec, shape, control.size());
    for (const Stage& stage : layout.stages) {
      layers.push_back(static_cast<int32_t>(stage.layers.count));
    }
  });
  control.broadcast(std::as_writable_bytes(std::span(layers)), 0);
  together(control, [&] {
    for (size_t i = 0; i < layers.size(); ++i) spec.stages[i].layers = layers[i];
    layout = make_layout(spec, shape, control.size());
  });
  return layout;
}

}  // namespace trireme
