// One canonical view of a model's tensors, whatever the file format. A format's quirks (GGUF's
// permuted Llama q/k rows, names, …) are undone here and nowhere else.
//
// Canonical names:
//   embed.weight [vocab, hidden]   norm.weight [hidden]   head.weight [vocab, hidden]
//   layers.N.attn_norm.weight  layers.N.{q,k,v,o}.{weight,bias}  layers.N.{q,k}_norm.weight
//   layers.N.ffn_norm.weight   layers.N.{gate,up,down}.weight
//   layers.N.{attn,ffn}_post_norm.weight
//   layers.N.router.weight [experts, hidden]   layers.N.experts.E.{gate,up,down}.weight
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/quant.h"
#include "runtime/model/config.h"

namespace trireme {

class GgufFile;
class PackedMatrix;

// A matrix in a mapped file; the source must outlive it.
struct SourceTensor {
  std::string name;    // canonical
  std::string origin;  // the file's own name, for messages
  QuantFormat format = QuantFormat::kF32;
  int64_t rows = 0;  // vectors have rows = 1
  int64_t cols = 0;
  const std::byte* data = nullptr;
  // Llama q/k in GGUF: canonical row r of a head lies at file row permuted(r). 0: not permuted.
  int permuted_head_dim = 0;
  // A vector's elements lie in the file less this.
  float addend = 0.0f;
  // Set where the file keeps the matrix in parts and in another order (then data is null).
  std::shared_ptr<const PackedMatrix> packed;
  // Row r is row r mod this one of so many (random weights). 0: all rows are there.
  int64_t distinct_rows = 0;

  // Where the file keeps canonical row `row` (of a bias: element `row`).
  int64_t file_row(int64_t row) const;
  // First byte of a row of a matrix that is not packed.
  const std::byte* row(int64_t canonical_row) const;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const std::string& path() const = 0;  // as given to open_model
  // The file's metadata (a tokenizer may be in it); null if the model is a directory.
  virtual const GgufFile* gguf() const { return nullptr; }
  virtual std::optional<SourceTensor> find(const std::string& name) const = 0;
  // Tells the OS that a tensor's pages were read for the last time by this rank.
  virtual void release(const SourceTensor& tensor) const = 0;
  virtual std::vector<SourceTensor> tensors() const = 0;  // all that the architecture uses
};

// `path`: a .gguf file, or a Hugging Face directory (config.json, *.safetensors).
// Checks every tensor that the architecture needs for presence and shape. Throws kNotFound,
// kDataLoss (malformed, naming file and field), kUnimplemented (architecture or format, with the
// list of known ones).
//
// `load_format` "dummy": random bf16 weights of the shapes that the directory's config.json says;
// no weight file is needed. `context`: tokens that it is to be served with, from which a rope may
// follow; 0: the model's own.
std::unique_ptr<WeightSource> open_model(const std::string& path,
                                         const std::string& load_format = "auto", int context = 0);

// What make_layout needs to know. Feed-forward cuts fall on whole blocks of the down projection's
// columns (gate and up are cut by rows, which no block spans), unless those are so wide and so few
// that the ranks would be uneven: then inside of blocks, and both sides of a cut hold the block.
// `width_multiple`: what the backend wants cuts to be multiples of, besides.
ModelShape model_shape(const WeightSource& source, int64_t width_multiple = 1);

}  // namespace trireme
