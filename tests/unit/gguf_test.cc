// The GGUF reader: what it reads, and how it refuses what does not add up.
#include "runtime/model/gguf.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "runtime/model/gguf_config.h"
#include "tests/support/model_files.h"

namespace trireme {
namespace {

// Bytes in memory of exactly their size, so that a sanitizer sees the first byte read beyond.
struct Parsed {
  explicit Parsed(const std::string& bytes)
      : size(bytes.size()), copy(std::make_unique<std::byte[]>(bytes.size())) {
    std::memcpy(copy.get(), bytes.data(), size);
    file.emplace(std::span<const std::byte>(copy.get(), size), "test.gguf");
  }
  const GgufFile& operator*() const { return *file; }
  const GgufFile* operator->() const { return &*file; }

  size_t size;
  std::unique_ptr<std::byte[]> copy;
  std::optional<GgufFile> file;
};

void expect_refused(const std::string& bytes, const std::string& part,
                    ErrorCode code = ErrorCode::kDataLoss) {
  const Error error = error_of([&] { Parsed parsed(bytes); });
  EXPECT_EQ(error.code(), code) << error.what();
  const std::string message = error.what();
  EXPECT_NE(message.find("test.gguf"), std::string::npos) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message << "\n  should say: " << part;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

constexpr uint32_t kF32 = 0, kQ8_0 = 8, kIQ2_XXS = 16, kQ4_K = 12, kQ5_0 = 6;

GgufBuilder small() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama").u32("n", 7).tensor("a", {8, 2}, kF32, 0);
  return builder;
}

TEST(Gguf, ReadsEveryKindOfValue) {
  Bytes strings, integers;
  strings.string("x").string("").string("\xe2\x82\xac");
  integers.number<int32_t>(-1).number<int32_t>(5);
  GgufBuilder builder;
  builder.value<uint8_t>("u8", GgufType::kU8, 200).value<int8_t>("i8", GgufType::kI8, -3);
  builder.value<uint16_t>("u16", GgufType::kU16, 60000).value<int16_t>("i16", GgufType::kI16, -4);
  builder.u32("u32", 4000000000u).value<int32_t>("i32", GgufType::kI32, -5);
  builder.value<uint64_t>("u64", GgufType::kU64, 1ull << 40);
  builder.value<int64_t>("i64", GgufType::kI64, -6).value<uint64_t>("huge", GgufType::kU64, ~0ull);
  builder.f32("f32", 1.5f).value<double>("f64", GgufType::kF64, 2.5);
  builder.value<uint8_t>("bool", GgufType::kBool, 1).text("text", "hello");
  builder.array("strings", GgufType::kString, 3, strings.text());
  builder.array("integers", GgufType::kI32, 2, integers.text());
  for (const uint32_t version : {2u, 3u}) {
    builder.version = version;
    const Parsed file(builder.build());
    EXPECT_EQ(file->get_int("u8"), 200);
    EXPECT_EQ(file->get_int("i8"), -3);
    EXPECT_EQ(file->get_int("u16"), 60000);
    EXPECT_EQ(file->get_int("i16"), -4);
    EXPECT_EQ(file->get_int("u32"), 4000000000);
    EXPECT_EQ(file->get_int("i32"), -5);
    EXPECT_EQ(file->get_int("u64"), int64_t{1} << 40);
    EXPECT_EQ(file->get_int("i64"), -6);
    EXPECT_EQ(file->get_number("f32"), 1.5);
    EXPECT_EQ(file->get_number("f64"), 2.5);
    EXPECT_EQ(file->get_number("i8"), -3.0);
    EXPECT_EQ(file->get_bool("bool"), true);
    EXPECT_EQ(file->get_string("text"), "hello");
    EXPECT_EQ(file->get_string_array("strings"),
              (std::vector<std::string>{"x", "", "\xe2\x82\xac"}));
    EXPECT_EQ(file->get_int_array("integers"), (std::vector<int64_t>{-1, 5}));
    EXPECT_EQ(file->get_int("absent"), std::nullopt);
    EXPECT_EQ(error_of([&] { file->get_int("huge"); }).code(), ErrorCode::kDataLoss);
    EXPECT_EQ(error_of([&] { file->get_int("text"); }).code(), ErrorCode::kDataLoss);
    EXPECT_EQ(error_of([&] { file->get_string("u8"); }).code(), ErrorCode::kDataLoss);
    EXPECT_EQ(error_of([&] { file->get_int_array("strings"); }).code(), ErrorCode::kDataLoss);
    EXPECT_EQ(error_of([&] { file->get_string_array("integers"); }).code(), ErrorCode::kDataLoss);
  }
}

TEST(Gguf, PlacesTensors) {
  GgufBuilder builder = small();
  builder.tensor("b", {32, 3}, kQ8_0, 64).tensor("c", {256}, kIQ2_XXS, 192);
  const Parsed file(builder.build(192 + 176));
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->find_tensor("a")->shape, (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(file->find_tensor("a")->bytes.size(), 64u);
  EXPECT_EQ(file->find_tensor("b")->bytes.size(), 3u * 34);
  EXPECT_EQ(file->find_tensor("b")->bytes.data() - file->find_tensor("a")->bytes.data(), 64);
  EXPECT_FALSE(file->find_tensor("c")->format);
  EXPECT_EQ(gguf_type_name(kIQ2_XXS), "IQ2_XXS");
  EXPECT_EQ(gguf_type_name(999), "type 999");
  EXPECT_EQ(file->find_tensor("d"), nullptr);
}

TEST(Gguf, RefusesEveryTruncation) {
  const std::string whole = small().build(64);
  Parsed parsed(whole);
  for (size_t size = 0; size < whole.size(); ++size) {
    const Error error = error_of([&] { Parsed cut(whole.substr(0, size)); });
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss) << size << ": " << error.what();
  }
}

TEST(Gguf, RefusesWhatIsNotGguf) {
  GgufBuilder builder = small();
  builder.magic = "GGML";
  expect_refused(builder.build(64), "not GGUF");
  builder = small();
  builder.version = 1;
  expect_refused(builder.build(64), "version 1", ErrorCode::kUnimplemented);
  builder.version = 3u << 24;
  expect_refused(builder.build(64), "big-endian", ErrorCode::kUnimplemented);
}

TEST(Gguf, RefusesCountsThatTheFileCannotHold) {
  GgufBuilder builder = small();
  builder.tensor_count = ~0ull;
  expect_refused(builder.build(64), "tensor count");
  builder = small();
  builder.value_count = 1ull << 62;
  expect_refused(builder.build(64), "metadata count");
  builder = small();
  builder.tensor_count = 100000;
  expect_refused(builder.build(64), "tensor count");
  for (const GgufType element : {GgufType::kU8, GgufType::kF64, GgufType::kString}) {
    for (const uint64_t count : {~0ull, 1ull << 61, 1000ull}) {
      expect_refused(GgufBuilder().array("list", element, count, "abc").build(), "list");
    }
  }
  Bytes string;
  string.number<uint64_t>(~0ull).raw("abc");
  expect_refused(GgufBuilder().array("list", GgufType::kString, 1, string.text()).build(), "list");
  Bytes name;
  name.raw("GGUF").number<uint32_t>(3).number<uint64_t>(0).number<uint64_t>(1);
  name.number<uint64_t>(1ull << 63).raw(std::string(64, 'x'));
  expect_refused(name.text(), "metadata key");
}

TEST(Gguf, RefusesUnknownValueTypes) {
  expect_refused(GgufBuilder().value<uint64_t>("odd", GgufType{13}, 0).build(), "'odd'");
  expect_refused(GgufBuilder().array("nested", GgufType::kArray, 1, "0123456789ab").build(),
                 "'nested'");
  expect_refused(GgufBuilder().array("nested", GgufType{99}, 1, "0123456789ab").build(),
                 "'nested'");
}

TEST(Gguf, RefusesDuplicates) {
  expect_refused(small().u32("n", 8).build(64), "twice");
  expect_refused(small().tensor("a", {8}, kF32, 64).build(128), "'a' occurs twice");
}

TEST(Gguf, RefusesAbsurdDimensions) {
  const auto with = [](const std::vector<uint64_t>& dims) {
    return GgufBuilder().tensor("bad", dims, kF32, 0).build(64);
  };
  expect_refused(with({}), "'bad' has 0 dimensions");
  expect_refused(with({1, 1, 1, 1, 1}), "'bad' has 5 dimensions");
  expect_refused(with({0}), "'bad'");
  expect_refused(with({1ull << 32, 1ull << 32}), "'bad'");
  expect_refused(with({1ull << 32, 1ull << 31, 2}), "'bad'");
  expect_refused(with({1ull << 63}), "'bad'");
  expect_refused(with({~0ull}), "'bad'");
  expect_refused(with({1ull << 40}), "'bad'");
  expect_refused(with({17}), "'bad'");
  expect_refused(GgufBuilder().tensor("bad", {33}, kQ8_0, 0).build(256), "whole Q8_0 blocks");
  expect_refused(GgufBuilder().tensor("bad", {48}, kQ5_0, 0).build(256), "whole Q5_0 blocks");
  expect_refused(GgufBuilder().tensor("bad", {320}, kQ4_K, 0).build(512), "whole Q4_K blocks");
  expect_refused(GgufBuilder().tensor("bad", {256, 2}, kQ4_K, 0).build(287), "288 bytes");
}

TEST(Gguf, RefusesBadPlaces) {
  expect_refused(small().tensor("b", {8}, kF32, 32).build(128), "overlap");
  expect_refused(small().tensor("b", {8}, kF32, 0).build(128), "overlap");
  expect_refused(small().tensor("b", {8}, kF32, 72).build(128), "multiple of 32");
  expect_refused(small().tensor("b", {8}, kF32, 128).build(128), "'b'");
  expect_refused(small().tensor("b", {8}, kF32, ~31ull).build(128), "'b'");
  expect_refused(small().tensor("b", {256}, kIQ2_XXS, 32).build(512), "overlap");
  for (const uint32_t alignment : {0u, 1u, 24u, 1u << 31}) {
    expect_refused(small().u32("general.alignment", alignment).build(64), "general.alignment");
  }
  const Parsed wide(small().u32("general.alignment", 256).build(64, 256));
  EXPECT_EQ((wide->find_tensor("a")->bytes.data() - wide.copy.get()) % 256, 0);
}

TEST(Gguf, TakesLargeHeaders) {
  GgufBuilder builder;
  for (uint32_t i = 0; i < 100000; ++i) {
    builder.u32("key." + std::to_string(i), i);
    builder.tensor("tensor." + std::to_string(i), {8}, kF32, uint64_t{i} * 32);
  }
  const Parsed file(builder.build(100000 * 32));
  EXPECT_EQ(file->get_int("key.99999"), 99999);
  EXPECT_EQ(file->tensors().size(), 100000u);
}

TEST(Gguf, MessagesShowUnprintableNamesEscaped) {
  expect_refused(small().tensor("bad\n\x01", {0}, kF32, 0).build(64), "'bad\\x0a\\x01'");
}

// Random damage to a real header ends in an Error or in a file that can be read.
TEST(Gguf, SurvivesDamage) {
  const std::string whole =
      read_bytes(TRIREME_FIXTURES "/models/gguf/llama3-bf16.gguf").substr(0, 8192);
  ASSERT_EQ(whole.size(), 8192u);
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = whole;
    for (int i = 0; i < 1 + round % 3; ++i) {
      const size_t at = random() % 3000;
      bytes[at] = static_cast<char>(round % 2 ? random() : uint32_t{0xff} * (random() % 2));
    }
    try {
      const Parsed parsed(bytes);
      parse_gguf_config(*parsed);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace trireme
