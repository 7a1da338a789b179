// load_weights: which slices of which tensors a rank keeps, and their packing.
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "runtime/model/decoder.h"
#include "runtime/model/model_tensors.h"
#include "runtime/model/packed_matrix.h"

namespace trireme {
namespace {

// Rows and columns of a matrix, cut as the layout says.
struct MatrixPiece {
  SourceTensor tensor;
  Part rows;
  Part cols;
  Weight* target = nullptr;
};

struct VectorPiece {
  SourceTensor tensor;
  Part elements;
  Buffer* target = nullptr;
};

// Pieces of one list are multiplied with the same x and may be kept as one.
struct Pieces {
  std::vector<std::vector<MatrixPiece>> matrices;
  std::vector<std::vector<VectorPiece>> vectors;
};

Part scaled(Part part, int64_t by) { return {part.begin * by, part.count * by}; }

SourceTensor need(const WeightSource& source, const std::string& name) {
  auto tensor = source.find(name);
  if (!tensor) fail(ErrorCode::kInternal, "{}: no tensor '{}'", source.path(), name);
  return *std::move(tensor);
}

class Cutter {
 public:
  Cutter(const WeightSource& source, const ParallelLayout& layout, int rank)
      : source_(source),
        config_(source.config()),
        stage_(layout.stage(rank)),
        shard_(layout.shard(rank)),
        tensor_rank_(layout.tensor_rank_of(rank)),
        first_(layout.stage_of(rank) == 0),
        last_(layout.stage_of(rank) == layout.pipeline() - 1) {}

  Pieces cut(DecoderWeights& out) {
    out.vocab = shard_.vocab;
    out.layers.resize(static_cast<size_t>(stage_.layers.count));
    if (first_ || (last_ && config_.tied_embeddings)) {
      matrices({{"embed.weight", shard_.vocab, hidden(), &out.embed}});
    }
    for (int64_t i = 0; i < stage_.layers.count; ++i) {
      layer(static_cast<int>(stage_.layers.begin + i), out.layers[static_cast<size_t>(i)]);
    }
    if (last_) {
      vectors({{"norm.weight", hidden(), &out.norm}});
      if (!config_.tied_embeddings) {
        matrices({{"head.weight", shard_.vocab, hidden(), &out.head}});
      }
    }
    return std::move(pieces_);
  }

 private:
  Part hidden() const { return {0, config_.hidden}; }

  struct NamedMatrix {
    std::string name;
    Part rows;
    Part cols;
    Weight* target;
  };
  struct NamedVector {
    std::string name;
    Part elements;
    Buffer* target;
  };

  void matrices(const std::vector<NamedMatrix>& list) {
    std::vector<MatrixPiece> pieces;
    for (const NamedMatrix& one : list) {
      if (one.rows.count == 0 || one.cols.count == 0) continue;
      pieces.push_back({need(source_, one.name), one.rows, one.cols, one.target});
    }
    if (!pieces.empty()) pieces_.matrices.push_back(std::move(pieces));
  }
  void vectors(const std::vector<NamedVector>& list) {
    std::vector<VectorPiece> pieces;
    for (const NamedVector& one : list) {
      pieces.push_back({need(source_, one.name), one.elements, one.target});
    }
    pieces_.vectors.push_back(std::move(pieces));
  }

  void layer(int index, LayerWeights& out) {
    const LayerConfig& config = config_.layers[static_cast<size_t>(index)];
    const auto name = [index](const char* tensor) { return layer_tensor(index, tensor); };
    const Part q = scaled(shard_.q_heads, config_.head_dim);
    const Part kv = scaled(shard_.kv_heads, config_.head_dim);
    vectors({{name("attn_norm.weight"), hidden(), &out.attn_norm}});
    vectors({{name("ffn_norm.weight"), hidden(), &out.ffn_norm}});
    if (config.post_norms) {
      vectors({{name("attn_post_norm.weight"), hidden(), &out.attn_post_norm}});
      vectors({{name("ffn_post_norm.weight"), hidden(), &out.ffn_post_norm}});
    }
    matrices({{name("q.weight"), q, hidden(), &out.q},
              {name("k.weight"), kv, hidden(), &out.k},
              {name("v.weight"), kv, hidden(), &out.v}});
    matrices({{name("o.weight"), hidden(), q, &out.o}});
    if (config.qkv_bias) {
      vectors({{name("q.bias"), q, &out.q_bias},
               {name("k.bias"), kv, &out.k_bias},
               {name("v.bias"), kv, &out.v_bias}});
    }
    // The outputs of o are summed over the tensor ranks: one of them adds the bias.
    if (config.o_bias && tensor_rank_ == 0) vectors({{name("o.bias"), hidden(), &out.o_bias}});
    if (config.qk_norm) {
      vectors({{name("q_norm.weight"), {0, config_.head_dim}, &out.q_norm}});
      vectors({{name("k_norm.weight"), {0, config_.head_dim}, &out.k_norm}});
    }
    if (config.experts.experts > 0) return experts(index, config.experts, out);
    matrices({{name("gate.weight"), shard_.ffn, hidden(), &out.gate},
              {name("up.weight"), shard_.ffn, hidden(), &out.up}});
    matrices({{name("down.weight"), hidden(), shard_.ffn, &out.down}});
  }

  void experts(int layer, const ExpertConfig& config, LayerWeights& out) {
    matrices({{layer_tensor(layer, "router.weight"), {0, config.experts}, hidden(), &out.router}});
    for (auto* weights : {&out.expert_gate, &out.expert_up, &out.expert_down}) {
      weights->resize(static_cast<size_t>(shard_.experts.count));
    }
    std::vector<NamedMatrix> inner, outer;
    for (int64_t i = 0; i < shard_.experts.count; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto name = [&](const char* tensor) {
        return expert_tensor(layer, static_cast<int>(shard_.experts.begin + i), tensor);
      };
      inner.push_back({name("gate.weight"), shard_.expert_ffn, hidden(), &out.expert_gate[at]});
      inner.push_back({name("up.weight"), shard_.expert_ffn, hidden(), &out.expert_up[at]});
      outer.push_back({name("down.weight"), hidden(), shard_.expert_ffn, &out.expert_down[at]});
    }
    matrices(inner);
    matrices(outer);
  }

  const WeightSource& source_;
  const ModelConfig& config_;
  const Stage& stage_;
  const TensorShard& shard_;
  int tensor_rank_;
  bool first_;
  bool last_;
  Pieces pieces_;
};

// Of a matrix in parts: blocks of `columns`, which are in the order of x or say theirs.
WeightSlice packed_slice_of(const MatrixPiece& piece) {
  const PackedMatrix& packed = *piece.tensor.packed;
  WeightSlice slice;
  auto columns = packed.columns(piece.cols);
  slice.format = packed.format();
  slice.rows = piece.rows.count;
  slice.cols = static_cast<int64_t>(columns.size());
  slice.col_count = piece.cols.count;
  if (packed.reordered()) {
    const auto begin = static_cast<int32_t>(piece.cols.begin);
    for (const int32_t col : columns) slice.order.push_back(col < 0 ? -1 : col - begin);
  } else {
    slice.col_begin = piece.cols.begin - columns.front();
  }
  slice.row = [&packed, first = piece.rows.begin, columns = std::move(columns)](
                  int64_t row, std::byte* scratch) -> const std::byte* {
    packed.read(first + row, columns, scratch);
    return scratch;
  };
  return slice;
}

// The slice in whole blocks; the piece's own columns are [col_begin, col_begin + col_count) of it.
WeightSlice slice_of(const MatrixPiece& piece) {
  if (piece.tensor.packed) return packed_slice_of(piece);
  const int64_t block = traits(piece.tensor.format).block_elements;
  const int64_t begin = piece.cols.begin / block * block;
  const int64_t end = (piece.cols.end() + block - 1) / block * block;
  WeightSlice slice;
  slice.format = piece.tensor.format;
  slice.rows = piece.rows.count;
  slice.cols = end - begin;
  slice.col_begin = piece.cols.begin - begin;
  slice.col_count = piece.cols.count;
  slice.row = [&tensor = piece.tensor, first = piece.rows.begin,
               offset = row_bytes(piece.tensor.format, begin)](int64_t row, std::byte*) {
    return tensor.row(first + row) + offset;
  };
  return slice;
}

int64_t bytes_of(const MatrixPiece& piece, const Backend& backend) {
  return backend.weight_bytes(slice_of(piece));
}

int64_t bytes_of(const VectorPiece& piece) {
  return piece.elements.count * static_cast<int64_t>(sizeof(float));
}

int64_t bytes_of(const Pieces& pieces, const Backend& backend) {
  int64_t bytes = 0;
  for (const auto& list : pieces.matrices) {
    for (const MatrixPiece& piece : list) bytes += bytes_of(piece, backend);
  }
  for (const auto& list : pieces.vectors) {
    for (const VectorPiece& piece : list) bytes += bytes_of(piece);
  }
  return bytes;
}

void read_vector(const VectorPiece& piece, float* out) {
  const SourceTensor& tensor = piece.tensor;
  const int64_t unit = row_bytes(tensor.format, 1);
  for (int64_t i = 0; i < piece.elements.count; ++i) {
    const int64_t at = tensor.file_row(piece.elements.begin + i);
    dequantize(tensor.format, tensor.data + at * unit, 1, out + i);
    out[i] += tensor.addend;
  }
}

// The vectors of one list lie one after the other.
void load_vectors(const std::vector<VectorPiece>& list, Backend& backend) {
  std::vector<float> values;
  for (const VectorPiece& piece : list) {
    const size_t begin = values.size();
    values.resize(begin + static_cast<size_t>(piece.elements.count));
    read_vector(piece, values.data() + begin);
  }
  const Buffer all = backend.upload(values);
  size_t offset = 0;
  for (const VectorPiece& piece : list) {
    const auto bytes = static_cast<size_t>(bytes_of(piece));
    *piece.target = all.part(offset, bytes);
    offset += bytes;
  }
}

}  // namespace

int64_t DecoderWeights::bytes() const {
  size_t bytes = embed.data.size() + head.data.size() + norm.size();
  for (const LayerWeights& layer : layers) {
    for (const Weight* weight : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up,
                                 &layer.down, &layer.router}) {
      bytes += weight->data.size();
    }
    for (const auto* experts : {&layer.expert_gate, &layer.expert_up, &layer.expert_down}) {
      for (const Weight& weight : *experts) bytes += weight.data.size();
    }
    for (const auto* vector : {&layer.attn_norm, &layer.ffn_norm, &layer.q_norm, &layer.k_norm,
                               &layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.o_bias,
                               &layer.attn_post_norm, &layer.ffn_post_norm}) {
      bytes += vector->size();
    }
  }
  return static_cast<int64_t>(bytes);
}

int64_t weight_bytes(const WeightSource& source, const ParallelLayout& layout, int rank,
                     const Backend& backend) {
  DecoderWeights unused;
  return bytes_of(Cutter(source, layout, rank).cut(unused), backend);
}

DecoderWeights load_weights(const WeightSource& source, const ParallelLayout& layout, int rank,
                            Backend& backend,
                            const std::function<void(int64_t, int64_t)>& progress) {
  DecoderWeights weights;
  const Pieces pieces = Cutter(source, layout, rank).cut(weights);
  const int64_t total = bytes_of(pieces, backend);
  int64_t done = 0;
  const auto advance = [&](int64_t bytes) {
    done += bytes;
    if (progress) progress(done, total);
  };
  for (const auto& list : pieces.vectors) {
    load_vectors(list, backend);
    for (const VectorPiece& piece : list) advance(bytes_of(piece));
  }
  for (const auto& list : pieces.matrices) {
    std::vector<WeightSlice> slices;
    for (const MatrixPiece& piece : list) slices.push_back(slice_of(piece));
    std::vector<Weight> made = backend.make_weights(slices);
    for (size_t i = 0; i < list.size(); ++i) {
      *list[i].target = std::move(made[i]);
      source.release(list[i].tensor);
      advance(bytes_of(list[i], backend));
    }
  }
  return weights;
}

}  // namespace trireme
