#include <gtest/gtest.h>

#include <unistd.h>
#include <algorithm>
#include <fstream>

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "base/buffer.h"
#include "base/error.h"
#include "base/huge_vector.h"
#include "base/mapped_file.h"
#include "tests/support/errors.h"

namespace trireme {
namespace {

TEST(Buffer, IsAlignedAndWritable) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4097}, size_t{5} << 20}) {
    const Buffer buffer(bytes);
    EXPECT_EQ(buffer.size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    std::memset(buffer.data(), 7, bytes);
    EXPECT_EQ(buffer.as<uint8_t>()[bytes - 1], 7);
  }
}

TEST(HugeVector, HoldsWhatAVectorHolds) {
  for (const size_t count : {size_t{0}, size_t{3}, size_t{1} << 21}) {
    HugeVector<int32_t> values(count, 7);
    values.push_back(8);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(values.data()) % 64, 0u);
    EXPECT_EQ(std::count(values.begin(), values.end(), 7), static_cast<int64_t>(count));
    EXPECT_EQ(HugeVector<int32_t>(values), values);
  }
}

TEST(Buffer, EmptyAndMoved) {
  EXPECT_EQ(Buffer().data(), nullptr);
  EXPECT_EQ(Buffer(0).data(), nullptr);
  Buffer a(100);
  const std::byte* where = a.data();
  const Buffer b = std::move(a);
  EXPECT_EQ(b.data(), where);
}

TEST(Buffer, RefusesWhatCannotBe) {
  EXPECT_EQ(code_of([] { Buffer buffer(SIZE_MAX); }), ErrorCode::kResourceExhausted);
  EXPECT_EQ(code_of([] { Buffer buffer(SIZE_MAX / 2); }), ErrorCode::kResourceExhausted);
}

class MappedFileTest : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& contents) {
    const std::string path = ::testing::TempDir() + "trireme_" + std::to_string(getpid()) + name;
    FILE* file = std::fopen(path.c_str(), "w");
    EXPECT_NE(file, nullptr);
    std::fwrite(contents.data(), 1, contents.size(), file);
    std::fclose(file);
    return path;
  }
};

TEST_F(MappedFileTest, MapsMovesAndReleases) {
  std::string contents(20000, 'x');
  contents.back() = 'y';
  const std::string path = write("full", contents);
  MappedFile file(path);
  ASSERT_EQ(file.bytes().size(), contents.size());
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(std::memcmp(file.bytes().data(), contents.data(), contents.size()), 0);
  MappedFile moved(std::move(file));
  MappedFile target(write("other", "other"));
  target = std::move(moved);
  target.release(target.bytes());
  target.release(target.bytes().subspan(5, 3));
  EXPECT_EQ(static_cast<char>(target.bytes().back()), 'y');  // read again from the file
  std::remove(path.c_str());
}

// Bytes of files that this process has mapped and touched.
int64_t resident_file_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == "RssFile:" && status >> kib) return kib * 1024;
  }
  return -1;
}

// A rank reads a file of weights larger than what it may keep.
TEST_F(MappedFileTest, ReleasedPagesNoLongerCount) {
  constexpr int64_t kBytes = 16 << 20;
  const std::string path = write("large", std::string(kBytes, 'x'));
  const MappedFile file(path);
  const int64_t before = resident_file_bytes();
  if (before < 0) GTEST_SKIP() << "/proc/self/status has no RssFile";
  int64_t sum = 0;
  for (int64_t i = 0; i < kBytes; i += 1024) sum += static_cast<char>(file.bytes()[i]) == 'x';
  EXPECT_EQ(sum, kBytes / 1024);
  EXPECT_GT(resident_file_bytes() - before, kBytes * 3 / 4);
  file.release(file.bytes());
  EXPECT_LT(resident_file_bytes() - before, kBytes / 4);
  std::remove(path.c_str());
}

TEST_F(MappedFileTest, SaysWhatIsWrong) {
  EXPECT_EQ(code_of([] { MappedFile file("/nonexistent/model.gguf"); }), ErrorCode::kNotFound);
  EXPECT_EQ(code_of([] { MappedFile file("/tmp"); }), ErrorCode::kDataLoss);
  const std::string empty = write("empty", "");
  EXPECT_EQ(code_of([&] { MappedFile file(empty); }), ErrorCode::kDataLoss);
  try {
    MappedFile file(empty);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(empty), std::string::npos);
  }
  std::remove(empty.c_str());
}

}  // namespace
}  // namespace trireme
