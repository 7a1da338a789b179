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

// A model under another architecture's name, or with a tensor of another format or name.
class Renamed final : public WeightSource {
 public:
  Renamed(const WeightSource& inner, const std::string& architecture,
          const std::string& changed = "", const std::string& name = "")
      : inner_(inner), config_(inner.config()), changed_(changed), name_(name) {
    config_.architecture = architecture;
  }
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return inner_.path(); }
  std::optional<SourceTensor> find(const std::string& name) const override {
    return inner_.find(name);
  }
  void release(const SourceTensor& tensor) const override { inner_.release(tensor); }
  std::vector<SourceTensor> tensors() const override {
    auto tensors = inner_.tensors();
    for (SourceTensor& tensor : tensors) {
      if (tensor.name != changed_) continue;
      tensor.format = QuantFormat::kF32;
      tensor.name = name_;
    }
    return tensors;
  }

 private:
  const WeightSource& inner_;
  ModelConfig config_;
  const std::string changed_, name_;
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

TEST(ElementOf, OneOtherMatrixIsEnoughForBf16) {
  const auto source = open_model(fixture_model(TRIREME_FIXTURES, "llama3-f16").path);
  const std::string last = "layers.3.down.weight";
  ASSERT_TRUE(source->find(last));
  EXPECT_EQ(element_of(asking("auto"), Renamed(*source, "llama", last, last), true), DType::kBF16);
  const Renamed router(*source, "llama", last, "layers.3.router.weight");
  EXPECT_EQ(element_of(asking("auto"), router, true), DType::kF16);
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

TEST(ElementOf, GpusAreNotDeterministic) {
  const auto source = open_model(fixture_model(TRIREME_FIXTURES, "llama3-f16").path);
  InstanceOptions options = asking("auto");
  options.deterministic = true;
  const Error error = error_of([&] { element_of(options, *source, true); });
  EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(std::string(error.what()).find("deterministic"), std::string::npos) << error.what();
  element_of(options, *source, false);  // a CPU is
}

}  // namespace
}  // namespace trireme
