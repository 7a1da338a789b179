// load_weights: which slices of which tensors a rank keeps, and their packing.
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "runtime/model/decoder.h"
#include "runtime/model/model_tensors.h"

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
  std::vector<float>* target = nullptr;
};

struct Pieces {
  std::vector<MatrixPiece> matrices;
  std::vector<VectorPiece> vectors;
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
      matrix("embed.weight", shard_.vocab, hidden(), out.embed);
    }
    for (int64_t i = 0; i < stage_.layers.count; ++i) {
      layer(static_cast<int>(stage_.layers.begin + i), out.layers[static_cast<size_t>(i)]);
    }
    if (last_) {
      vector("norm.weight", hidden(), out.norm);
      if (!config_.tied_embeddings) matrix("head.weight", shard_.vocab, hidden(), out.head);
    }
    return std::move(pieces_);
  }

 private:
  Part hidden() const { return {0, config_.hidden}; }

  void matrix(const std::string& name, Part rows, Part cols, Weight& target) {
    if (rows.count == 0 || cols.count == 0) return;
    pieces_.matrices.push_back({need(source_, name), rows, cols, &target});
  }
  void vector(const std::string& name, Part elements, std::vector<float>& target) {
    pieces_.vectors.push_back({need(source_, name), elements, &target});
  }

  void layer(int index, LayerWeights& out) {
    const LayerConfig& config = config_.layers[static_cast<size_t>(index)];
    const auto name = [index](const char* tensor) { return layer_tensor(index, tensor); };
    const Part q = scaled(shard_.q_heads, config_.head_dim);
    const Part kv = scaled(shard_.kv_heads, config_.head_dim);
    vector(name("attn_norm.weight"), hidden(), out.attn_norm);
    vector(name("ffn_norm.weight"), hidden(), out.ffn_norm);
    matrix(name("q.weight"), q, hidden(), out.q);
    matrix(name("k.weight"), kv, hidden(), out.k);
    matrix(name("v.weight"), kv, hidden(), out.v);
    matrix(name("o.weight"), hidden(), q, out.o);
    if (config.qkv_bias) {
      vector(name("q.bias"), q, out.q_bias);
      vector(name("k.bias"), kv, out.k_bias);
      vector(name("v.bias"), kv, out.v_bias);
    }
    // The outputs of o are summed over the tensor ranks: one of them adds the bias.
    if (config.o_bias && tensor_rank_ == 0) vector(name("o.bias"), hidden(), out.o_bias);
    if (config.qk_norm) {
      vector(name("q_norm.weight"), {0, config_.head_dim}, out.q_norm);
      vector(name("k_norm.weight"), {0, config_.head_dim}, out.k_norm);
    }
    matrix(name("gate.weight"), shard_.ffn, hidden(), out.gate);
    matrix(name("up.weight"), shard_.ffn, hidden(), out.up);
    matrix(name("down.weight"), hidden(), shard_.ffn, out.down);
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

// The slice in whole blocks; the piece's own columns are [col_begin, col_begin + col_count) of it.
WeightSlice slice_of(const MatrixPiece& piece) {
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
               offset = row_bytes(piece.tensor.format, begin)](int64_t row) {
    return tensor.row(first + row) + offset;
  };
  return slice;
}

int64_t bytes_of(const MatrixPiece& piece) {
  const WeightSlice slice = slice_of(piece);
  return slice.rows * row_bytes(slice.format, slice.cols);
}

int64_t bytes_of(const VectorPiece& piece) {
  return piece.elements.count * static_cast<int64_t>(sizeof(float));
}

int64_t bytes_of(const Pieces& pieces) {
  int64_t bytes = 0;
  for (const MatrixPiece& piece : pieces.matrices) bytes += bytes_of(piece);
  for (const VectorPiece& piece : pieces.vectors) bytes += bytes_of(piece);
  return bytes;
}

std::vector<float> read_vector(const VectorPiece& piece) {
  const SourceTensor& tensor = piece.tensor;
  const int64_t unit = row_bytes(tensor.format, 1);
  std::vector<float> values(static_cast<size_t>(piece.elements.count));
  for (int64_t i = 0; i < piece.elements.count; ++i) {
    const int64_t at = tensor.file_row(piece.elements.begin + i);
    dequantize(tensor.format, tensor.data + at * unit, 1, &values[static_cast<size_t>(i)]);
  }
  return values;
}

}  // namespace

int64_t DecoderWeights::bytes() const {
  size_t bytes = embed.data.size() + head.data.size() + norm.size() * sizeof(float);
  for (const LayerWeights& layer : layers) {
    for (const Weight* weight :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      bytes += weight->data.size();
    }
    for (const auto* vector : {&layer.attn_norm, &layer.ffn_norm, &layer.q_norm, &layer.k_norm,
                               &layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.o_bias}) {
      bytes += vector->size() * sizeof(float);
    }
  }
  return static_cast<int64_t>(bytes);
}

int64_t weight_bytes(const WeightSource& source, const ParallelLayout& layout, int rank) {
  DecoderWeights unused;
  return bytes_of(Cutter(source, layout, rank).cut(unused));
}

DecoderWeights load_weights(const WeightSource& source, const ParallelLayout& layout, int rank,
                            Backend& backend,
                            const std::function<void(int64_t, int64_t)>& progress) {
  DecoderWeights weights;
  const Pieces pieces = Cutter(source, layout, rank).cut(weights);
  const int64_t total = bytes_of(pieces);
  int64_t done = 0;
  const auto advance = [&](int64_t bytes) {
    done += bytes;
    if (progress) progress(done, total);
  };
  for (const VectorPiece& piece : pieces.vectors) {
    *piece.target = read_vector(piece);
    advance(bytes_of(piece));
  }
  for (const MatrixPiece& piece : pieces.matrices) {
    *piece.target = backend.make_weight(slice_of(piece));
    source.release(piece.tensor);
    advance(bytes_of(piece));
  }
  return weights;
}

}  // namespace trireme
