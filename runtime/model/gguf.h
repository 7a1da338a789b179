// GGUF v2 and v3: metadata and tensor table of a mapped file. Nothing is copied but names.
//
// Every count and length is checked against the bytes that are left before it is used, so that a
// malformed file costs one error message (kDataLoss, naming file and field) and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/quant.h"

namespace trireme {

// Type numbers of metadata values, as the file writes them.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

// A value still in the file: a scalar, a string's bytes, or `count` elements of an array.
struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element = GgufType::kU8;  // of an array
  uint64_t count = 1;
  std::span<const std::byte> bytes;
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;         // outermost first: a matrix is [rows, cols]
  uint32_t type = 0;                  // ggml's number
  std::optional<QuantFormat> format;  // empty: known to no kernel of ours
  std::span<const std::byte> bytes;   // empty where the type is unknown
};

// ggml's name of a tensor type, e.g. "Q5_K", or "type 77".
std::string gguf_type_name(uint32_t type);

class GgufFile {
 public:
  // `bytes` (the whole file) must outlive this; `path` begins every message.
  GgufFile(std::span<const std::byte> bytes, std::string path);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }

  bool has(const std::string& key) const { return values_.contains(key); }
  const GgufValue* find(const std::string& key) const;
  std::vector<std::string> keys() const;  // sorted

  // Empty if the key is absent; kDataLoss if it has another type. Integers of every width and
  // sign are taken where they fit int64; floats of both widths.
  std::optional<int64_t> get_int(const std::string& key) const;
  std::optional<double> get_number(const std::string& key) const;  // integers too
  std::optional<bool> get_bool(const std::string& key) const;
  std::optional<std::string> get_string(const std::string& key) const;
  std::optional<std::vector<std::string>> get_string_array(const std::string& key) const;
  std::optional<std::vector<int64_t>> get_int_array(const std::string& key) const;
  std::optional<std::vector<float>> get_float_array(const std::string& key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(const std::string& name) const;

 private:
  class Reader;
  void read_metadata(Reader& in, uint64_t count);
  void read_tensors(Reader& in, uint64_t count);
  void place_tensors(std::span<const std::byte> data, std::vector<uint64_t> offsets);
  const GgufValue* find_array(const std::string& key, const char* wanted) const;
  [[noreturn]] void wrong_type(const std::string& key, const char* wanted) const;

  std::string path_;
  uint32_t version_ = 0;
  std::unordered_map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_index_;
};

}  // namespace trireme
