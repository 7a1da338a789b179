// open_model and load_weights: names, shapes and permutations undone, slices that make up the
// whole, bytes as predicted, and one clear message per mistake.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "base/thread_pool.h"
#include "runtime/model/arch_table.h"
#include "runtime/model/decoder.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/packed_matrix.h"
#include "tests/support/idle_backend.h"
#include "tests/support/model_files.h"
#include "tests/support/model_fixture.h"

namespace trireme {
namespace {

std::vector<float> row_values(const SourceTensor& tensor, int64_t row) {
  std::vector<float> values(static_cast<size_t>(tensor.cols));
  if (tensor.packed) {
    const auto columns = tensor.packed->columns({0, tensor.cols});
    const auto count = static_cast<int64_t>(columns.size());
    std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(tensor.format, count)));
    std::vector<float> held(columns.size());
    tensor.packed->read(row, columns, blocks.data());
    dequantize(tensor.format, blocks.data(), count, held.data());
    for (size_t j = 0; j < columns.size(); ++j) {
      if (columns[j] >= 0) values[static_cast<size_t>(columns[j])] = held[j];
    }
    return values;
  }
  dequantize(tensor.format, tensor.row(row), tensor.cols, values.data());
  for (float& value : values) value += tensor.addend;
  return values;
}

// Keeps slices as they lie in the file, whole blocks and all.
class KeepingBackend : public IdleBackend {
 public:
  DType activation_dtype() const override { return DType::kF32; }
  Weight make_weight(const WeightSlice& slice) override {
    Weight weight;
    weight.format = slice.format;
    weight.rows = slice.rows;
    weight.cols = slice.cols;
    weight.col_begin = slice.col_begin;
    weight.col_count = slice.col_count;
    weight.order = slice.order;
    const auto bytes = static_cast<size_t>(row_bytes(slice.format, slice.cols));
    weight.data = Buffer(bytes * static_cast<size_t>(slice.rows));
    std::vector<std::byte> scratch(bytes);
    for (int64_t row = 0; row < slice.rows; ++row) {
      std::memcpy(weight.data.data() + static_cast<size_t>(row) * bytes,
                  slice.row(row, scratch.data()), bytes);
    }
    return weight;
  }
};

// This rank's own columns of a row.
std::vector<float> own_columns(const Weight& weight, int64_t row) {
  std::vector<float> all(static_cast<size_t>(weight.cols));
  dequantize(weight.format, weight.data.data() + row * row_bytes(weight.format, weight.cols),
             weight.cols, all.data());
  if (!weight.order.empty()) {
    std::vector<float> own(static_cast<size_t>(weight.col_count), NAN);
    for (size_t j = 0; j < weight.order.size(); ++j) {
      if (weight.order[j] >= 0) own[static_cast<size_t>(weight.order[j])] = all[j];
    }
    return own;
  }
  const auto begin = all.begin() + weight.col_begin;
  return {begin, begin + weight.col_count};
}

// Every element of `whole` comes from exactly the rank and place that the parts say.
void expect_rows(const SourceTensor& whole, const Weight& part, Part rows) {
  ASSERT_EQ(part.rows, rows.count) << whole.name;
  for (int64_t row = 0; row < rows.count; ++row) {
    ASSERT_EQ(own_columns(part, row), row_values(whole, rows.begin + row)) << whole.name;
  }
}

void expect_columns(const SourceTensor& whole, const Weight& part, Part cols) {
  ASSERT_EQ(part.rows, whole.rows) << whole.name;
  ASSERT_EQ(part.col_count, cols.count) << whole.name;
  for (int64_t row = 0; row < whole.rows; ++row) {
    const auto values = row_values(whole, row);
    const auto begin = values.begin() + cols.begin;
    ASSERT_EQ(own_columns(part, row), std::vector<float>(begin, begin + cols.count)) << whole.name;
  }
}

ParallelLayout layout_of(const WeightSource& source, int tensor, int pipeline) {
  LayoutSpec spec;
  spec.stages.assign(static_cast<size_t>(pipeline), {tensor, 0});
  return make_layout(spec, model_shape(source), spec.world());
}

class EveryModel : public testing::TestWithParam<FixtureEntry> {
 protected:
  std::unique_ptr<WeightSource> source_ = open_model(GetParam().path);
};

void expect_experts(const WeightSource& source, const std::string& prefix,
                    const LayerWeights& layer, const TensorShard& shard) {
  const SourceTensor router = *source.find(prefix + "router.weight");
  expect_rows(router, layer.router, {0, router.rows});
  ASSERT_EQ(layer.expert_gate.size(), static_cast<size_t>(shard.experts.count));
  for (int64_t i = 0; i < shard.experts.count; ++i) {
    const auto whole = [&](const char* name) {
      return *source.find(prefix + "experts." + std::to_string(shard.experts.begin + i) + "." +
                          name + ".weight");
    };
    const auto at = static_cast<size_t>(i);
    expect_rows(whole("gate"), layer.expert_gate[at], shard.expert_ffn);
    expect_rows(whole("up"), layer.expert_up[at], shard.expert_ffn);
    expect_columns(whole("down"), layer.expert_down[at], shard.expert_ffn);
  }
}

TEST_P(EveryModel, RanksHoldTheirSlices) {
  const WeightSource& source = *source_;
  const int head_dim = source.config().head_dim;
  const auto scaled = [head_dim](Part part) {
    return Part{part.begin * head_dim, part.count * head_dim};
  };
  for (const auto& [tensor, pipeline] : {std::pair{1, 1}, {3, 1}, {4, 2}, {2, 3}}) {
    const ParallelLayout layout = layout_of(source, tensor, pipeline);
    for (int rank = 0; rank < layout.world(); ++rank) {
      SCOPED_TRACE("rank " + std::to_string(rank) + " of " + layout.describe());
      KeepingBackend backend;
      const DecoderWeights weights = load_weights(source, layout, rank, backend);
      EXPECT_EQ(weights.bytes(), weight_bytes(source, layout, rank, backend));
      const TensorShard& shard = layout.shard(rank);
      const Stage& stage = layout.stage(rank);
      const bool first = rank < tensor, last = rank >= tensor * (pipeline - 1);
      EXPECT_EQ(weights.embed.empty(), !first && !(last && source.config().tied_embeddings));
      EXPECT_EQ(weights.head.empty(), !last || source.config().tied_embeddings);
      EXPECT_EQ(weights.norm.empty(), !last);
      if (!weights.embed.empty()) {
        expect_rows(*source.find("embed.weight"), weights.embed, shard.vocab);
      }
      if (!weights.head.empty()) {
        expect_rows(*source.find("head.weight"), weights.head, shard.vocab);
      }
      ASSERT_EQ(weights.layers.size(), static_cast<size_t>(stage.layers.count));
      for (int64_t i = 0; i < stage.layers.count; ++i) {
        const std::string prefix = "layers." + std::to_string(stage.layers.begin + i) + ".";
        const auto whole = [&](const char* name) {
          return *source.find(prefix + name + ".weight");
        };
        const LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
        expect_rows(whole("q"), layer.q, scaled(shard.q_heads));
        expect_rows(whole("k"), layer.k, scaled(shard.kv_heads));
        expect_rows(whole("v"), layer.v, scaled(shard.kv_heads));
        expect_columns(whole("o"), layer.o, scaled(shard.q_heads));
        if (source.config().layers[static_cast<size_t>(stage.layers.begin + i)].experts.experts >
            0) {
          expect_experts(source, prefix, layer, shard);
          continue;
        }
        expect_rows(whole("gate"), layer.gate, shard.ffn);
        expect_rows(whole("up"), layer.up, shard.ffn);
        expect_columns(whole("down"), layer.down, shard.ffn);
      }
    }
  }
}

TEST_P(EveryModel, ThePackedBytesAreThoseOfTheAccount) {
  ThreadPool pool(1);
  for (const CpuIsa isa : {CpuIsa::kReference, best_cpu_isa()}) {
    const auto backend = make_cpu_backend(pool, isa);
    const ParallelLayout layout = layout_of(*source_, 2, 2);
    for (int rank = 0; rank < layout.world(); ++rank) {
      int64_t last_done = 0, last_total = 0;
      const DecoderWeights weights =
          load_weights(*source_, layout, rank, *backend, [&](int64_t done, int64_t total) {
            EXPECT_GE(done, last_done);
            last_done = done;
            last_total = total;
          });
      const int64_t predicted = weight_bytes(*source_, layout, rank, *backend);
      EXPECT_EQ(last_done, predicted);
      EXPECT_EQ(last_total, predicted);
      // Kernels pad rows to panels: at most 31 rows a matrix, a few of its bytes in a real model.
      int64_t padding = 0;
      for (const SourceTensor& tensor : source_->tensors()) {
        if (tensor.rows > 1) padding += 31 * row_bytes(tensor.format, tensor.cols) + 64;
      }
      EXPECT_GE(weights.bytes(), predicted);
      EXPECT_LE(weights.bytes(), predicted + padding);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryModel, testing::ValuesIn(fixture_models(TRIREME_FIXTURES)),
                         [](const auto& info) { return test_name(info.param.name); });

// A GGUF twin holds the directory's weights in the same canonical rows, up to its storage type.
TEST(OpenModel, GgufTwinsHoldTheSameTensors) {
  for (const auto& [directory, twin, tolerance] :
       {std::tuple{"llama-linear", "gguf-llama-linear-f16", 1e-3},
        std::tuple{"llama3", "gguf-llama3-bf16", 1e-2}, std::tuple{"qwen2", "gguf-qwen2-f16", 1e-3},
        std::tuple{"qwen3", "gguf-qwen3-f32", 0.0},
        std::tuple{"llama-plain", "gguf-llama-plain-q8_0", 2e-2},
        std::tuple{"mistral", "gguf-mistral-f16", 1e-3},
        std::tuple{"gemma3", "gguf-gemma3-bf16", 1e-2}, std::tuple{"phi3", "gguf-phi3-q8_0", 2e-2},
        std::tuple{"mixtral", "gguf-mixtral-q8_0", 2e-2},
        std::tuple{"qwen3moe", "gguf-qwen3moe-f32", 0.0}}) {
    const auto a = open_model(fixture_model(TRIREME_FIXTURES, directory).path);
    const auto b = open_model(fixture_model(TRIREME_FIXTURES, twin).path);
    EXPECT_EQ(a->gguf(), nullptr);
    EXPECT_NE(b->gguf(), nullptr);
    EXPECT_EQ(a->tensors().size(), b->tensors().size());
    for (const SourceTensor& tensor : a->tensors()) {
      const auto other = b->find(tensor.name);
      ASSERT_TRUE(other) << tensor.name;
      for (int64_t row = 0; row < tensor.rows; ++row) {
        const auto want = row_values(tensor, row), got = row_values(*other, row);
        float largest = 0.0f;
        for (const float value : want) largest = std::max(largest, std::abs(value));
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_NEAR(got[i], want[i], tolerance * largest) << twin << " " << tensor.name;
        }
      }
    }
  }
}

TEST(OpenModel, BothFormatsGiveOneConfiguration) {
  const auto a = open_model(fixture_model(TRIREME_FIXTURES, "qwen3").path);
  const auto b = open_model(fixture_model(TRIREME_FIXTURES, "gguf-qwen3-f32").path);
  EXPECT_EQ(a->config().layers, b->config().layers);
  EXPECT_EQ(a->config().ropes, b->config().ropes);
  EXPECT_EQ(a->config().norm_eps, b->config().norm_eps);
  EXPECT_EQ(a->config().eos_ids, (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(b->config().eos_ids, (std::vector<int32_t>{2}));
  // config.json as transformers 4 and as 5 writes it.
  const std::string folder = fixture_model(TRIREME_FIXTURES, "llama3").path;
  const Json five = read_json_file(folder + "/config.json");
  const Json four = read_json_file(folder + "/config.v4.json");
  EXPECT_TRUE(five.contains("rope_parameters"));
  EXPECT_TRUE(four.contains("rope_scaling"));
  const auto parse = [](const Json& json) {
    return parse_hugging_face_config(json, nullptr, "config.json").model;
  };
  EXPECT_EQ(parse(four).ropes, parse(five).ropes);
  EXPECT_EQ(parse(four).layers, parse(five).layers);
}

TEST(OpenModel, UndoesThePermutationOfBiases) {
  SourceTensor bias;
  bias.permuted_head_dim = 8;
  const int64_t want[] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(bias.file_row(i), want[i]);
}

TEST(OpenModel, CutsAtBlocksUnlessTheyAreFew) {
  const auto multiple = [](const char* name) {
    return model_shape(*open_model(fixture_model(TRIREME_FIXTURES, name).path)).ffn_multiple;
  };
  EXPECT_EQ(multiple("llama-plain"), 1);
  EXPECT_EQ(multiple("gguf-llama-plain-q4_0"), 32);
  EXPECT_EQ(multiple("llama-plain-gptq_act"), 32);
  EXPECT_EQ(multiple("llama-wide-awq"), 32);        // two blocks of 128
  EXPECT_EQ(multiple("gguf-llama-wide-q6_k"), 32);  // one block of 256: cut inside of it
}

// ---- mistakes ---------------------------------------------------------------------------------

void expect_refused(const std::string& path, ErrorCode code,
                    const std::vector<std::string>& parts) {
  const Error error = error_of([&] { open_model(path); });
  EXPECT_EQ(error.code(), code) << error.what();
  const std::string message = error.what();
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << message << "\n  should say: " << part;
  }
}

// A copy of a fixture's directory, to be damaged.
void copy_model(const TempDirectory& to, const std::string& fixture) {
  for (const auto& file :
       std::filesystem::directory_iterator(fixture_model(TRIREME_FIXTURES, fixture).path)) {
    std::filesystem::copy(file.path(), to.path(file.path().filename().string()));
  }
}

void replace_in(const std::string& path, const std::string& from, const std::string& to) {
  std::string bytes = read_bytes(path);
  const auto at = bytes.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  bytes.replace(at, from.size(), to);
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(OpenModel, RefusesWrongPaths) {
  expect_refused("/nonexistent/model", ErrorCode::kNotFound, {"/nonexistent/model"});
  TempDirectory directory;
  expect_refused(directory.path(), ErrorCode::kNotFound, {"config.json"});
  expect_refused(directory.write("x.safetensors", "abc"), ErrorCode::kInvalidArgument,
                 {"directory"});
  expect_refused(directory.write("x.bin", "not a model"), ErrorCode::kDataLoss, {"x.bin", "GGUF"});
  expect_refused(directory.write("empty.gguf", ""), ErrorCode::kDataLoss, {"empty"});
}

TEST(OpenModel, RefusesDirectoriesThatDoNotAddUp) {
  {
    TempDirectory directory;
    copy_model(directory, "llama3");
    replace_in(directory.path("config.json"), "\"num_hidden_layers\": 4",
               "\"num_hidden_layers\": 5");
    expect_refused(directory.path(), ErrorCode::kDataLoss,
                   {"model.layers.4.input_layernorm.weight", "missing"});
  }
  {
    TempDirectory directory;
    copy_model(directory, "llama3");
    replace_in(directory.path("config.json"), "\"vocab_size\": 515", "\"vocab_size\": 514");
    expect_refused(directory.path(), ErrorCode::kDataLoss,
                   {"model.safetensors", "model.embed_tokens.weight", "[515, 48]", "[514, 48]"});
  }
  {
    TempDirectory directory;
    copy_model(directory, "llama3");
    replace_in(directory.path("config.json"), "\"tie_word_embeddings\": true",
               "\"tie_word_embeddings\": false");
    expect_refused(directory.path(), ErrorCode::kDataLoss, {"lm_head.weight", "missing"});
  }
  {
    TempDirectory directory;
    copy_model(directory, "llama3");
    std::filesystem::resize_file(directory.path("model.safetensors"), 20000);
    expect_refused(directory.path(), ErrorCode::kDataLoss, {"model.safetensors", "outside"});
  }
  {
    TempDirectory directory;
    copy_model(directory, "llama-plain");
    std::filesystem::remove(directory.path("model-00002-of-00002.safetensors"));
    expect_refused(directory.path(), ErrorCode::kNotFound, {"model-00002-of-00002.safetensors"});
  }
  {
    TempDirectory directory;
    copy_model(directory, "llama3-f16");
    replace_in(directory.path("model.safetensors"), "\"dtype\":\"F16\"", "\"dtype\":\"I16\"");
    expect_refused(directory.path(), ErrorCode::kUnimplemented, {"type I16"});
  }
}

TEST(OpenModel, RefusesGgufFilesThatDoNotAddUp) {
  const std::string whole = read_bytes(fixture_model(TRIREME_FIXTURES, "gguf-qwen2-f16").path);
  TempDirectory directory;
  const auto damaged = [&](const std::string& from, const std::string& to) {
    std::string bytes = whole;
    bytes.replace(bytes.find(from), from.size(), to);
    return directory.write("damaged.gguf", bytes);
  };
  expect_refused(damaged("blk.2.attn_q.weight", "blk.2.attn_x.weight"), ErrorCode::kDataLoss,
                 {"blk.2.attn_q.weight", "missing"});
  expect_refused(damaged("blk.2.attn_q.bias", "blk.2.attn_x.bias"), ErrorCode::kDataLoss,
                 {"blk.2.attn_q.bias", "missing"});
  expect_refused(directory.write("cut.gguf", whole.substr(0, whole.size() - 100)),
                 ErrorCode::kDataLoss, {"cut.gguf", "tensor"});
  // The tensor's type: name, dimensions, then the number.
  std::string bytes = whole;
  const std::string name = "blk.1.ffn_up.weight";
  bytes[bytes.find(name) + name.size() + 4 + 2 * 8] = 16;
  expect_refused(directory.write("type.gguf", bytes), ErrorCode::kUnimplemented,
                 {"blk.1.ffn_up.weight", "IQ2_XXS"});
  // Rows and columns swapped.
  bytes = whole;
  char* dims = &bytes[bytes.find(name) + name.size() + 4];
  std::swap_ranges(dims, dims + 8, dims + 8);
  expect_refused(directory.write("shape.gguf", bytes), ErrorCode::kDataLoss,
                 {"blk.1.ffn_up.weight", "[96, 56]", "[56, 96]"});
}

TEST(ArchTable, NamesEveryTensorInBothFormats) {
  const Architecture& llama = find_gguf_architecture("llama", "x");
  EXPECT_EQ(hugging_face_place(llama, "layers.12.q.weight").name,
            "model.layers.12.self_attn.q_proj.weight");
  EXPECT_EQ(gguf_place(llama, "layers.12.o.weight").name, "blk.12.attn_output.weight");
  EXPECT_EQ(gguf_place(llama, "head.weight").name, "output.weight");
  EXPECT_EQ(gguf_place(llama, "layers.x").name, "");
  EXPECT_EQ(gguf_place(llama, "other.weight").name, "");
  const Architecture& moe = find_gguf_architecture("qwen3moe", "x");
  EXPECT_EQ(hugging_face_place(moe, "layers.12.experts.7.up.weight").name,
            "model.layers.12.mlp.experts.7.up_proj.weight");
  EXPECT_EQ(gguf_place(moe, "layers.12.experts.7.up.weight").name, "blk.12.ffn_up_exps.weight");
  EXPECT_EQ(gguf_place(moe, "layers.12.experts.7.up.weight").rows, RowsOf::kExperts);
  std::set<std::string_view> names;
  for (const Architecture& row : architectures()) {
    EXPECT_TRUE(names.insert(row.name).second);
    EXPECT_FALSE(row.hugging_face.empty());
    // GGUF files of two families say another's name.
    EXPECT_EQ(row.gguf.empty(), row.name == "mistral" || row.name == "mixtral") << row.name;
  }
}

}  // namespace
}  // namespace trireme
