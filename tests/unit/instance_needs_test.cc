// What a rank needs in a layout, and the layout that is advised where a GPU has too little.
#include "runtime/instance_needs.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/thread_pool.h"
#include "parallel/topology.h"
#include "runtime/instance_layout.h"
#include "runtime/profiles.h"
#include "tests/support/model_fixture.h"

namespace trireme {
namespace {

class InstanceNeeds : public testing::Test {
 protected:
  InstanceNeeds()
      : source_(open_model(fixture_model(TRIREME_FIXTURES, "llama-plain").path)),
        backend_(make_cpu_backend(pool_, CpuIsa::kReference)),
        shape_(model_shape(*source_, backend_->width_multiple())),
        groups_(kv_groups(source_->config())),
        scheduler_(profile("balanced", false)) {
    scheduler_.max_context = source_->config().max_context;
  }

  ServedModel model() const {
    return {*source_, *backend_, scheduler_, groups_, DType::kF32, 16, 0, 0};
  }
  ParallelLayout layout(int tensor, int pipeline) const {
    LayoutSpec spec;
    spec.stages.assign(static_cast<size_t>(pipeline), {tensor, 0});
    return make_layout(spec, shape_, tensor * pipeline);
  }
  // Of the rank that needs most.
  int64_t most(const ParallelLayout& of) const {
    int64_t bytes = 0;
    for (int rank = 0; rank < of.world(); ++rank) {
      bytes = std::max(bytes, required_bytes(memory_needs(model(), of, rank)));
    }
    return bytes;
  }
  std::string advice(int64_t available) const {
    return fitting_layout(model(), shape_, layout(1, 1), available);
  }

  ThreadPool pool_{1};
  std::unique_ptr<WeightSource> source_;
  std::unique_ptr<Backend> backend_;
  ModelShape shape_;
  KvGroups groups_;
  SchedulerConfig scheduler_;
};

TEST_F(InstanceNeeds, RanksShareWhatThereIs) {
  const MemoryNeeds alone = memory_needs(model(), layout(1, 1), 0);
  EXPECT_EQ(required_bytes(alone),
            alone.weights + alone.scratch + alone.least_blocks[0] * alone.block_bytes[0]);
  const MemoryNeeds half = memory_needs(model(), layout(2, 1), 1);
  EXPECT_LT(half.weights, alone.weights);
  EXPECT_LT(half.block_bytes[0], alone.block_bytes[0]);
  EXPECT_EQ(half.least_blocks, alone.least_blocks);
  ServedModel asking = model();
  asking.kv_memory = 3 * alone.block_bytes[0];
  EXPECT_EQ(required_bytes(memory_needs(asking, layout(1, 1), 0)),
            alone.weights + alone.scratch + asking.kv_memory);
}

TEST_F(InstanceNeeds, TheLeastWorldThatFitsIsAdvised) {
  const ParallelLayout two = make_layout(choose_layout(shape_, even_topology(2, 8)), shape_, 2);
  const int64_t of_two = most(two);
  ASSERT_LT(of_two, most(layout(1, 1)));
  const std::string line = "2 ranks with layout " + two.describe() + " would fit";
  EXPECT_EQ(advice(of_two), line);
  EXPECT_EQ(advice(of_two - 1).find("2 ranks with"), std::string::npos) << advice(of_two - 1);
  // The layout that there is is not advised, though it would fit.
  EXPECT_EQ(advice(most(layout(1, 1))), line);
  EXPECT_EQ(fitting_layout(model(), shape_, two, most(layout(1, 1))).substr(0, 19),
            "1 rank with layout ");
  EXPECT_EQ(advice(1 << 20), "no layout of up to 64 such GPUs would fit");
}

}  // namespace
}  // namespace trireme
