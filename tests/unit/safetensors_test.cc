// The safetensors reader: what it reads, and how it refuses what does not add up.
#include "runtime/model/safetensors.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "tests/support/model_files.h"

namespace trireme {
namespace {

std::vector<SafeTensor> parse(const std::string& bytes) {
  // At an address as aligned as a mapped file's, and not a byte longer than the file.
  const std::unique_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return parse_safetensors({copy.get(), bytes.size()}, "test.safetensors");
}

// Header and data, the header padded to a multiple of 8 as files have it.
std::string file(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return safetensors_bytes(header, data_bytes);
}

void expect_refused(const std::string& bytes, const std::string& part) {
  const Error error = error_of([&] { parse(bytes); });
  EXPECT_EQ(error.code(), ErrorCode::kDataLoss) << error.what();
  const std::string message = error.what();
  EXPECT_NE(message.find("test.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message << "\n  should say: " << part;
}

constexpr const char* kTwo =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";

TEST(Safetensors, ReadsTheTable) {
  const auto tensors = parse(file(kTwo, 32));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].format, QuantFormat::kF32);
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors[1].format, QuantFormat::kBF16);
  EXPECT_EQ(tensors[1].bytes.size(), 8u);
  EXPECT_EQ(tensors[1].bytes.data() - tensors[0].bytes.data(), 24);
}

TEST(Safetensors, UnknownTypesAreOnlyNamed) {
  const auto tensors =
      parse(file(R"({"a":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[0,5]}})", 5));
  EXPECT_FALSE(tensors[0].format);
  EXPECT_EQ(tensors[0].dtype, "F8_E4M3");
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string whole = file(kTwo, 32);
  for (size_t size = 0; size < whole.size(); ++size) {
    const Error error = error_of([&] { parse(whole.substr(0, size)); });
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss) << size << ": " << error.what();
  }
}

TEST(Safetensors, RefusesHeadersBeyondTheFile) {
  Bytes huge;
  expect_refused(huge.number<uint64_t>(~0ull).raw("{}").text(), "header");
  Bytes large;
  expect_refused(large.number<uint64_t>(3).raw("{}").text(), "header");
}

TEST(Safetensors, RefusesWhatIsNoTable) {
  expect_refused(file("[]", 0), "not a JSON object");
  expect_refused(file("{\"a\":}", 0), "not valid JSON");
  expect_refused(file("{\"a\":1}", 0), "tensor 'a'");
  expect_refused(file("{\"a\":{}}", 0), "'dtype' is missing");
  expect_refused(file("{\"\xff\":{}}", 0), "not valid JSON");
  expect_refused(file(std::string(100000, '['), 0), "nested deeper");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  expect_refused(file(objects, 0), "nested deeper");
}

std::string one(const std::string& fields, size_t data = 64) {
  return file("{\"a\":{" + fields + "}}", data);
}

TEST(Safetensors, RefusesFieldsThatDoNotAddUp) {
  expect_refused(one(R"("dtype":"F32","data_offsets":[0,4])"), "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[1])"), "'data_offsets'");
  expect_refused(one(R"("dtype":4,"shape":[1],"data_offsets":[0,4])"), "'dtype'");
  expect_refused(one(R"("dtype":"F32","shape":"x","data_offsets":[0,4])"), "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4])"),
                 "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"),
                 "'shape'");
  expect_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), "'data_offsets'");
  expect_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "outside");
  expect_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[64,68])"), "outside");
  expect_refused(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "need 8 bytes");
  expect_refused(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"),
                 "overflows");
  expect_refused(one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"),
                 "overflows");
  expect_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[2,6])"), "not aligned");
}

TEST(Safetensors, RefusesOverlapsAndDuplicates) {
  expect_refused(file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                      12),
                 "overlap");
  expect_refused(file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
                      16),
                 "twice");
}

TEST(Safetensors, TakesLargeHeaders) {
  std::string header = "{";
  for (size_t i = 0; i < 100000; ++i) {
    header += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) +
              "\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[" + std::to_string(2 * i) +
              "," + std::to_string(2 * i + 2) + "]}";
  }
  EXPECT_EQ(parse(file(header + "}", 200000)).size(), 100000u);
}

TEST(Safetensors, SurvivesDamage) {
  const std::string whole = file(kTwo, 32);
  std::mt19937 random(2);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = whole;
    bytes[random() % whole.size()] = static_cast<char>(random());
    try {
      parse(bytes);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

constexpr const char* kOneTensor = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";

TEST(SafetensorsDirectory, ReadsShards) {
  TempDirectory directory;
  directory.write("x.safetensors", file(kOneTensor, 4));
  directory.write("y.safetensors",
                  file(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  directory.write("model.safetensors.index.json",
                  R"({"weight_map":{"a":"x.safetensors","b":"y.safetensors"}})");
  const SafetensorsDirectory shards(directory.path());
  ASSERT_NE(shards.find("a"), nullptr);
  ASSERT_NE(shards.find("b"), nullptr);
  EXPECT_EQ(shards.find("b")->file->path(), directory.path("y.safetensors"));
  EXPECT_EQ(shards.find("c"), nullptr);
}

TEST(SafetensorsDirectory, RefusesBadIndexes) {
  const auto refused = [](const std::string& index, ErrorCode code, const std::string& part) {
    TempDirectory directory;
    directory.write("x.safetensors", file(kOneTensor, 4));
    directory.write("y.safetensors", file(kOneTensor, 4));
    directory.write("model.safetensors.index.json", index);
    const Error error = error_of([&] { SafetensorsDirectory shards(directory.path()); });
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  };
  refused("{}", ErrorCode::kDataLoss, "'weight_map'");
  refused(R"({"weight_map":[]})", ErrorCode::kDataLoss, "'weight_map'");
  refused(R"({"weight_map":{"a":1}})", ErrorCode::kDataLoss, "tensor 'a'");
  refused(R"({"weight_map":{"a":"../x.safetensors"}})", ErrorCode::kDataLoss, "tensor 'a'");
  refused(R"({"weight_map":{"a":"/etc/passwd"}})", ErrorCode::kDataLoss, "tensor 'a'");
  refused(R"({"weight_map":{"a":"z.safetensors"}})", ErrorCode::kNotFound, "z.safetensors");
  refused(R"({"weight_map":{"b":"x.safetensors"}})", ErrorCode::kDataLoss, "tensor 'b'");
  refused(R"({"weight_map":{"a":"x.safetensors","b":"y.safetensors"}})", ErrorCode::kDataLoss,
          "tensor 'a'");
}

TEST(SafetensorsDirectory, RefusesAnEmptyDirectory) {
  TempDirectory directory;
  const Error error = error_of([&] { SafetensorsDirectory shards(directory.path()); });
  EXPECT_EQ(error.code(), ErrorCode::kNotFound);
}

}  // namespace
}  // namespace trireme
