// safetensors: the tensor table of one mapped file, and of a directory of shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "kernels/quant.h"

namespace trireme {

struct SafeTensor {
  std::string name;
  std::string dtype;                  // as written, e.g. "BF16"
  std::optional<QuantFormat> format;  // empty: known to no kernel of ours
  std::vector<int64_t> shape;         // outermost first
  std::span<const std::byte> bytes;
};

// Reads the table in `bytes`, a whole file; `path` begins every message. Refuses (kDataLoss) what
// does not add up: header beyond the file, offsets outside of the data, overlapping or misaligned
// tensors, sizes that contradict shapes, names that occur twice.
std::vector<SafeTensor> parse_safetensors(std::span<const std::byte> bytes,
                                          const std::string& path);

// The tensors of a Hugging Face directory: model.safetensors, or the shards that
// model.safetensors.index.json names.
class SafetensorsDirectory {
 public:
  explicit SafetensorsDirectory(const std::string& directory);

  struct Entry {
    SafeTensor tensor;
    const MappedFile* file = nullptr;
  };
  const Entry* find(const std::string& name) const;
  const std::unordered_map<std::string, Entry>& entries() const { return entries_; }

 private:
  void add_file(const std::string& path);
  void add_shards(const std::string& directory, const std::string& index_path);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace trireme
