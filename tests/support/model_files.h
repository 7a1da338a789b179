// Model files made by a test: GGUF and safetensors byte by byte, and a directory to put them in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "runtime/model/gguf.h"
#include "tests/support/errors.h"

namespace trireme {

// A directory of its own, removed at the end.
class TempDirectory {
 public:
  TempDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "trireme-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) fail(ErrorCode::kInternal, "mkdtemp failed");
    path_ = name;
  }
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  std::string path(const std::string& file = "") const {
    return file.empty() ? path_ : path_ + "/" + file;
  }
  std::string write(const std::string& file, std::string_view bytes) const {
    std::ofstream(path(file), std::ios::binary) << bytes;
    return path(file);
  }

 private:
  std::string path_;
};

class Bytes {
 public:
  template <typename T>
  Bytes& number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view bytes) {
    text_ += bytes;
    return *this;
  }
  Bytes& string(std::string_view text) { return number<uint64_t>(text.size()).raw(text); }
  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }

 private:
  std::string text_;
};

// Writes what it is told, right or wrong.
class GgufBuilder {
 public:
  template <typename T>
  GgufBuilder& value(std::string_view key, GgufType type, T number) {
    values_.string(key).number(static_cast<uint32_t>(type)).number(number);
    return count_value();
  }
  GgufBuilder& u32(std::string_view key, uint32_t number) {
    return value(key, GgufType::kU32, number);
  }
  GgufBuilder& f32(std::string_view key, float number) {
    return value(key, GgufType::kF32, number);
  }
  GgufBuilder& text(std::string_view key, std::string_view text) {
    values_.string(key).number(static_cast<uint32_t>(GgufType::kString)).string(text);
    return count_value();
  }
  GgufBuilder& array(std::string_view key, GgufType element, uint64_t count,
                     std::string_view payload) {
    values_.string(key).number(static_cast<uint32_t>(GgufType::kArray));
    values_.number(static_cast<uint32_t>(element)).number(count).raw(payload);
    return count_value();
  }
  // Dimensions as the file has them: columns first.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                      uint64_t offset) {
    tensors_.string(name).number(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) tensors_.number(dim);
    tensors_.number(type).number(offset);
    ++tensor_count;
    return *this;
  }

  std::string build(size_t data_bytes = 0, size_t alignment = 32) const {
    Bytes out;
    out.raw(magic).number(version).number(tensor_count).number(value_count);
    out.raw(values_.text()).raw(tensors_.text());
    const size_t padding = (alignment - out.size() % alignment) % alignment;
    return out.raw(std::string(padding + data_bytes, '\0')).text();
  }

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t tensor_count = 0;
  uint64_t value_count = 0;

 private:
  GgufBuilder& count_value() {
    ++value_count;
    return *this;
  }

  Bytes values_;
  Bytes tensors_;
};

inline std::string safetensors_bytes(std::string_view header, size_t data_bytes) {
  Bytes out;
  return out.string(header).raw(std::string(data_bytes, '\0')).text();
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace trireme
