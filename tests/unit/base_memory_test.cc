#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "base/buffer.h"
#include "base/error.h"
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
