// Quantized matrices of safetensors directories: how mistakes in their parts are refused. What they
// mean is tested by parity_test and loader_test on fixtures.
#include "runtime/model/packed_matrix.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "tests/support/model_files.h"

namespace trireme {
namespace {

struct TensorText {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, TensorText>;

std::string zeros(int64_t bytes) { return std::string(static_cast<size_t>(bytes), '\0'); }

// A matrix [8, 64] named "m" in groups of 32.
Tensors gptq() {
  return {{"m.qweight", {"I32", {8, 8}, zeros(256)}},
          {"m.qzeros", {"I32", {2, 1}, zeros(8)}},
          {"m.scales", {"F16", {2, 8}, zeros(32)}},
          {"m.g_idx", {"I32", {64}, zeros(256)}}};
}
Tensors fp8() {
  return {{"m.weight", {"F8_E4M3", {8, 64}, zeros(512)}},
          {"m.weight_scale_inv", {"F32", {2, 2}, zeros(16)}}};
}

class PackedMatrixTest : public testing::Test {
 protected:
  PackedMatrix open(const QuantScheme& scheme, const Tensors& tensors, int64_t rows = 8,
                    int64_t cols = 64) {
    Json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const size_t begin = data.size();
      data += tensor.bytes;
      header[name] = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    Bytes file;
    file.string(text).raw(data);
    directory_.write("model.safetensors", file.text());
    files_.emplace(directory_.path());
    return {scheme, *files_, directory_.path(), "m", rows, cols};
  }
  void refuse(const QuantScheme& scheme, const Tensors& tensors, const std::string& part,
              ErrorCode code = ErrorCode::kDataLoss, int64_t rows = 8, int64_t cols = 64) {
    const Error error = error_of([&] { open(scheme, tensors, rows, cols); });
    EXPECT_EQ(error.code(), code) << error.what();
    const std::string message = error.what();
    EXPECT_NE(message.find(part), std::string::npos) << message << "\n  should say: " << part;
    EXPECT_NE(message.find(directory_.path()), std::string::npos) << message;
  }

  TempDirectory directory_;
  std::optional<SafetensorsDirectory> files_;
  QuantScheme gptq_{
      .method = QuantScheme::Method::kGptq, .group = 32, .has_zeros = true, .zero_bias = 1};
  QuantScheme fp8_{.method = QuantScheme::Method::kFloat8Block, .block_rows = 4, .block_cols = 32};
};

TEST_F(PackedMatrixTest, RefusesPartsThatDoNotFit) {
  for (const char* part : {"m.qweight", "m.qzeros", "m.scales", "m.g_idx"}) {
    Tensors tensors = gptq();
    tensors[part].shape.push_back(1);
    refuse(gptq_, tensors, std::string(part) + "' has shape");
    tensors = gptq();
    tensors[part].dtype = "I64";
    refuse(gptq_, tensors, std::string(part) + "' is of type I64");
    if (std::string(part) == "m.g_idx") continue;
    tensors = gptq();
    tensors.erase(part);
    refuse(gptq_, tensors, std::string(part) + "' is missing");
  }
  Tensors tensors = gptq();
  tensors["m.qweight"].bytes.resize(254);
  refuse(gptq_, tensors, "m.qweight': shape and dtype need 256 bytes, it has 254");
  tensors = gptq();
  tensors["m.g_idx"].bytes[4 * 5] = 2;
  refuse(gptq_, tensors, "column 5 is of group 2, there are 2");
  tensors["m.g_idx"].bytes.replace(4 * 5, 4, "\xff\xff\xff\xff");
  refuse(gptq_, tensors, "column 5 is of group -1");
}

TEST_F(PackedMatrixTest, RefusesSizesThatDoNotPack) {
  refuse(gptq_, gptq(), "48 are not whole blocks", ErrorCode::kUnimplemented, 8, 48);
  refuse(gptq_, gptq(), "9 outputs", ErrorCode::kUnimplemented, 9, 64);
  QuantScheme other = gptq_;
  other.group = 64;
  refuse(other, gptq(), "m.scales' has shape [2, 8], quantization_config needs [1, 8]");
  QuantScheme blocks = fp8_;
  blocks.block_rows = 8;
  refuse(blocks, fp8(), "m.weight_scale_inv' has shape [2, 2], quantization_config needs [1, 2]");
}

TEST_F(PackedMatrixTest, RefusesNanWeights) {
  Tensors tensors = fp8();
  tensors["m.weight"].bytes[3 * 64 + 40] = '\x7f';
  const PackedMatrix matrix = open(fp8_, tensors);
  const auto columns = matrix.columns({0, 64});
  std::vector<std::byte> out(static_cast<size_t>(row_bytes(matrix.format(), 64)));
  matrix.read(2, columns, out.data());
  const Error error = error_of([&] { matrix.read(3, columns, out.data()); });
  EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
  EXPECT_NE(std::string(error.what()).find("'m.weight': row 3"), std::string::npos);
}

// A rank's columns by group, each group in blocks of its own.
TEST_F(PackedMatrixTest, OrdersColumnsByGroup) {
  Tensors tensors = gptq();
  for (int col = 0; col < 64; ++col)
    tensors["m.g_idx"].bytes[static_cast<size_t>(4 * col)] = col % 2;
  const PackedMatrix matrix = open(gptq_, tensors);
  EXPECT_TRUE(matrix.reordered());
  const auto columns = matrix.columns({10, 20});
  ASSERT_EQ(columns.size(), 64u);
  for (size_t i = 0; i < 64; ++i) {
    const auto in_block = static_cast<int32_t>(i % 32);
    const int32_t want = in_block < 10 ? 10 + 2 * in_block + static_cast<int32_t>(i / 32) : -1;
    EXPECT_EQ(columns[i], want) << i;
  }
}

}  // namespace
}  // namespace trireme
