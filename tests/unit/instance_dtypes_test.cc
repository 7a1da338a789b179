// Which types an instance takes for a model's files.
#include "runtime/instance_dtypes.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/model_fixture.h"

namespace trireme {
namespace {

InstanceOptions asking(const std::string& dtype) {
  InstanceOptions options;
  options.dtype = dtype;
  return options;
}

// A model's weights under another architecture's name.
class Renamed final : public WeightSource {
 public:
  Renamed(const WeightSource& inner, const std::string& architecture)
      : inner_(inner), config_(inner.config()) {
    config_.architecture = architecture;
  }
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return inner_.path(); }
  std::optional<SourceTensor> find(const std::string& name) const override {
    return inner_.find(name);
  }
  void release(const SourceTensor& tensor) const override { inner_.release(tensor); }
  std::vector<SourceTensor> tensors() const override { return inner_.tensors(); }

 private:
  const WeightSource& inner_;
  ModelConfig config_;
};

TEST(ElementOf, FilesOfF16TakeF16OnGpus) {
  int halves = 0;
  for (const FixtureEntry& entry : fixture_models(TRIREME_FIXTURES)) {
    SCOPED_TRACE(entry.name);
    const auto source = open_model(entry.path);
    const bool half = entry.dtype == "f16";
    halves += half ? 1 : 0;
    EXPECT_EQ(element_of(asking("auto"), *source, true), half ? DType::kF16 : DType::kBF16);
    EXPECT_EQ(element_of(asking("bf16"), *source, true), DType::kBF16);
    EXPECT_EQ(element_of(asking("f16"), *source, true), DType::kF16);
  }
  EXPECT_GE(halves, 3);
}

TEST(ElementOf, NotWhereActivationsExceedF16) {
  const auto source = open_model(fixture_model(TRIREME_FIXTURES, "llama3-f16").path);
  EXPECT_EQ(element_of(asking("auto"), Renamed(*source, "llama"), true), DType::kF16);
  EXPECT_EQ(element_of(asking("auto"), Renamed(*source, "gemma3"), true), DType::kBF16);
}

TEST(ElementOf, RefusesOthers) {
  const auto source = open_model(fixture_model(TRIREME_FIXTURES, "llama3-f16").path);
  EXPECT_EQ(error_of([&] { element_of(asking("f8"), *source, true); }).code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { element_of(asking("f16"), *source, false); }).code(),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace trireme
