// Streams beside the ops, marks that order them, and stamps of the GPU's clock, also in what is
// replayed. Skipped (exit 77) without a GPU.
#include <chrono>
#include <cstdio>

#include "base/spans.h"
#include "kernels/cuda_module.h"
#include "tests/kernels/testing.h"

namespace trireme::testing {
namespace {

constexpr int64_t kRows = 64, kCols = 4096;

class GpuStreams : public ::testing::Test {
 protected:
  MatrixView matrix(const Buffer& buffer, DType dtype = DType::kF32) const {
    return {buffer.data(), dtype, kRows, kCols, kCols};
  }
  Buffer filled(float value) {
    return backend_->upload(std::vector<float>(static_cast<size_t>(kRows * kCols), value));
  }
  // A millisecond or so of work on the ops' stream.
  void work(int times) {
    for (int i = 0; i < times; ++i) backend_->rms_norm(matrix(x_), norm_.as<float>(), 1e-5f, out());
  }
  MatrixView out() const { return matrix(out_, backend_->activation_dtype()); }

  ThreadPool pool_{1};
  std::unique_ptr<Backend> backend_ = make_cuda_backend(pool_, 0);
  Buffer x_ = filled(1.0f);
  Buffer norm_ = backend_->upload(std::vector<float>(static_cast<size_t>(kCols), 1.0f));
  Buffer out_ = backend_->allocate(static_cast<size_t>(kRows * kCols * 4));
};

// What is copied behind a mark is what was there when the mark was set.
TEST_F(GpuStreams, MarksOrderStreams) {
  const auto side = backend_->make_side_stream();
  const auto mark = backend_->make_mark(), back = backend_->make_mark();
  const Buffer a = filled(1.0f), b = filled(2.0f);
  mark->await(side->native());  // never set: nothing to wait for
  for (int round = 0; round < 50; ++round) {
    work(20);
    backend_->fill_bytes(matrix(a), static_cast<uint8_t>(round));
    mark->set(backend_->stream());
    mark->await(side->native());
    back->set(side->native());
    back->await(backend_->stream());
    backend_->copy(matrix(a), matrix(b));
    const MatrixView read = backend_->read_back(matrix(b));
    const auto* bytes = static_cast<const uint8_t*>(read.data);
    ASSERT_EQ(bytes[0], round);
    ASSERT_EQ(bytes[kRows * kCols * 4 - 1], round);
  }
}

TEST_F(GpuStreams, StampsAreInOrderAlsoInReplays) {
  StepTimer* timer = backend_->step_timer();
  ASSERT_NE(timer, nullptr);
  timer->stamp(DevicePart::kLayers);  // not started: nothing
  const auto side = backend_->make_side_stream();
  const int64_t before = SpanRecorder::now();
  timer->start(1024);
  constexpr int kSteps = 12;
  for (int step = 0; step < kSteps; ++step) {
    backend_->repeat({kRows, false, 7}, [&] {
      timer->stamp(DevicePart::kLayers);
      work(10);
      timer->stamp(DevicePart::kNothing);
    });
    timer->stamp(DevicePart::kSend, side->native());
    timer->stamp(DevicePart::kNothing, side->native());
  }
  const DeviceTimes times = timer->stop();
  const int64_t after = SpanRecorder::now();
  EXPECT_EQ(times.dropped, 0u);
  ASSERT_EQ(times.stamps.size(), 4u * kSteps);
  int layers = 0;
  for (size_t i = 0; i < times.stamps.size(); ++i) {
    const DeviceStamp& stamp = times.stamps[i];
    EXPECT_EQ(stamp.stream, i < 2 * kSteps ? 0 : 1);
    EXPECT_GE(stamp.time, before - times.clock_error);
    EXPECT_LE(stamp.time, after + times.clock_error);
    if (i > 0 && times.stamps[i - 1].stream == stamp.stream) {
      EXPECT_GE(stamp.time, times.stamps[i - 1].time);
    }
    if (stamp.part != DevicePart::kLayers) continue;
    ++layers;
    EXPECT_EQ(times.stamps[i + 1].part, DevicePart::kNothing);
    EXPECT_GT(times.stamps[i + 1].time,
              stamp.time);  // ten kernels take longer than the clock's step
  }
  EXPECT_EQ(layers, kSteps);
  std::printf("  the GPU's clock: steps of %lld ns, within %.1f us of the host's\n",
              static_cast<long long>(times.resolution),
              1e-3 * static_cast<double>(times.clock_error));
  // What was recorded with stamps is forgotten: it would stamp into memory that is gone.
  backend_->repeat({kRows, false, 7}, [&] { work(1); });
  backend_->synchronize();
}

TEST_F(GpuStreams, TheLatestStampsAreKept) {
  StepTimer* timer = backend_->step_timer();
  timer->start(10);
  for (int i = 0; i < 25; ++i) {
    timer->stamp(i % 2 == 0 ? DevicePart::kLayers : DevicePart::kNothing);
  }
  const DeviceTimes times = timer->stop();
  EXPECT_EQ(times.dropped, 15u);
  ASSERT_EQ(times.stamps.size(), 10u);
  EXPECT_EQ(times.stamps.back().part, DevicePart::kLayers);
  timer->start(10);  // and once more
  EXPECT_TRUE(timer->stop().stamps.empty());
}

}  // namespace
}  // namespace trireme::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (trireme::cuda_device_count() == 0) {
    std::printf("skipped: %s\n", trireme::cuda_unavailable().c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
