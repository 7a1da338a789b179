#include "runtime/model/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "runtime/model/json_file.h"

namespace trireme {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr size_t kLongestName = 65535;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kLargestAlignment = uint64_t{1} << 20;

struct TensorType {
  const char* name;  // nullptr: a number that ggml has retired or never used
  std::optional<QuantFormat> format;
};

// Indexed by ggml's type number.
constexpr auto kTensorTypes = std::to_array<TensorType>({
    {"F32", QuantFormat::kF32},
    {"F16", QuantFormat::kF16},
    {"Q4_0", QuantFormat::kQ4_0},
    {"Q4_1", QuantFormat::kQ4_1},
    {nullptr, {}},
    {nullptr, {}},
    {"Q5_0", QuantFormat::kQ5_0},
    {"Q5_1", QuantFormat::kQ5_1},
    {"Q8_0", QuantFormat::kQ8_0},
    {"Q8_1", {}},
    {"Q2_K", QuantFormat::kQ2_K},
    {"Q3_K", QuantFormat::kQ3_K},
    {"Q4_K", QuantFormat::kQ4_K},
    {"Q5_K", QuantFormat::kQ5_K},
    {"Q6_K", QuantFormat::kQ6_K},
    {"Q8_K", {}},
    {"IQ2_XXS", {}},
    {"IQ2_XS", {}},
    {"IQ3_XXS", {}},
    {"IQ1_S", {}},
    {"IQ4_NL", QuantFormat::kIQ4_NL},
    {"IQ3_S", {}},
    {"IQ2_S", {}},
    {"IQ4_XS", {}},
    {"I8", {}},
    {"I16", {}},
    {"I32", {}},
    {"I64", {}},
    {"F64", {}},
    {"IQ1_M", {}},
    {"BF16", QuantFormat::kBF16},
});

// Bytes of a scalar; 0 for strings and arrays.
size_t scalar_size(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    default: return 0;
  }
}

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::optional<int64_t> load_integer(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8: return load<uint8_t>(at);
    case GgufType::kI8: return load<int8_t>(at);
    case GgufType::kU16: return load<uint16_t>(at);
    case GgufType::kI16: return load<int16_t>(at);
    case GgufType::kU32: return load<uint32_t>(at);
    case GgufType::kI32: return load<int32_t>(at);
    case GgufType::kI64: return load<int64_t>(at);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(at);
      if (value > uint64_t{INT64_MAX}) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::string gguf_type_name(uint32_t type) {
  if (type < kTensorTypes.size() && kTensorTypes[type].name != nullptr) {
    return kTensorTypes[type].name;
  }
  return fmt::format("type {}", type);
}

// A cursor that cannot leave the file.
class GgufFile::Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, std::string_view field) {
    if (count > left()) {
      fail(ErrorCode::kDataLoss, "{}: {}: {} bytes at offset {}, but the file ends at {}", path_,
           printable(field), count, position_, bytes_.size());
    }
    const auto taken = bytes_.subspan(position_, static_cast<size_t>(count));
    position_ += static_cast<size_t>(count);
    return taken;
  }

  template <typename T>
  T number(std::string_view field) {
    return load<T>(take(sizeof(T), field).data());
  }

  std::span<const std::byte> string(std::string_view field) {
    return take(number<uint64_t>(field), field);
  }

  std::string name(std::string_view field) {
    const auto bytes = string(field);
    if (bytes.size() > kLongestName) {
      fail(ErrorCode::kDataLoss, "{}: {}: a name of {} bytes", path_, field, bytes.size());
    }
    return std::string(as_text(bytes));
  }

  // A count of things that take at least `smallest` bytes each.
  uint64_t bounded(uint64_t count, size_t smallest, std::string_view field) {
    if (count > left() / smallest) {
      fail(ErrorCode::kDataLoss, "{}: {} is {}, more than the file's {} bytes can hold", path_,
           printable(field), count, bytes_.size());
    }
    return count;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t position_ = 0;
};

GgufFile::GgufFile(std::span<const std::byte> bytes, std::string path) : path_(std::move(path)) {
  Reader in(bytes, path_);
  if (as_text(in.take(4, "magic")) != "GGUF") fail(ErrorCode::kDataLoss, "{}: not GGUF", path_);
  version_ = in.number<uint32_t>("version");
  if (version_ != 2 && version_ != 3) {
    const bool swapped = (version_ & 0xffffu) == 0;
    fail(ErrorCode::kUnimplemented, "{}: GGUF version {}{}; versions 2 and 3 are known", path_,
         version_, swapped ? " (a big-endian file)" : "");
  }
  const auto tensors = in.number<uint64_t>("tensor count");
  const auto values = in.number<uint64_t>("metadata count");
  read_metadata(in, in.bounded(values, 8 + 4 + 1, "metadata count"));
  read_tensors(in, in.bounded(tensors, 8 + 4 + 8 + 4 + 8, "tensor count"));
}

void GgufFile::read_metadata(Reader& in, uint64_t count) {
  values_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = in.name("metadata key");
    GgufValue value;
    value.type = static_cast<GgufType>(in.number<uint32_t>(key));
    if (value.type == GgufType::kString) {
      value.bytes = in.string(key);
    } else if (value.type == GgufType::kArray) {
      value.element = static_cast<GgufType>(in.number<uint32_t>(key));
      const auto elements = in.number<uint64_t>(key);
      if (const size_t size = scalar_size(value.element); size > 0) {
        value.count = in.bounded(elements, size, key);
        value.bytes = in.take(value.count * size, key);
      } else if (value.element == GgufType::kString) {
        value.count = in.bounded(elements, 8, key);
        const size_t begin = in.position();
        const auto rest = in;  // strings stay in the file; here their lengths are checked
        for (uint64_t s = 0; s < value.count; ++s) in.string(key);
        value.bytes = Reader(rest).take(in.position() - begin, key);
      } else {
        fail(ErrorCode::kDataLoss, "{}: metadata '{}': arrays of type {} are not known", path_,
             printable(key), static_cast<uint32_t>(value.element));
      }
    } else if (const size_t size = scalar_size(value.type); size > 0) {
      value.bytes = in.take(size, key);
    } else {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}': type {} is not known", path_, printable(key),
           static_cast<uint32_t>(value.type));
    }
    if (!values_.emplace(std::move(key), value).second) {
      fail(ErrorCode::kDataLoss, "{}: a metadata key occurs twice (entry {})", path_, i);
    }
  }
}

void GgufFile::read_tensors(Reader& in, uint64_t count) {
  const auto alignment =
      static_cast<uint64_t>(get_int("general.alignment").value_or(int64_t{kDefaultAlignment}));
  if (alignment < 8 || alignment > kLargestAlignment || !std::has_single_bit(alignment)) {
    fail(ErrorCode::kDataLoss, "{}: general.alignment is {}, not a power of two in [8, {}]", path_,
         alignment, kLargestAlignment);
  }
  std::vector<uint64_t> offsets;
  tensors_.reserve(count);
  offsets.reserve(count);
  tensor_index_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    tensor.name = in.name("tensor name");
    const auto dims = in.number<uint32_t>(tensor.name);
    if (dims < 1 || dims > 4) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' has {} dimensions", path_, printable(tensor.name),
           dims);
    }
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
      const auto size = in.number<uint64_t>(tensor.name);
      if (size == 0 || size > uint64_t{INT64_MAX} ||
          __builtin_mul_overflow(elements, size, &elements) || elements > uint64_t{1} << 60) {
        fail(ErrorCode::kDataLoss, "{}: tensor '{}': dimension {} is {}", path_,
             printable(tensor.name), d, size);
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    tensor.type = in.number<uint32_t>(tensor.name);
    if (tensor.type < kTensorTypes.size()) tensor.format = kTensorTypes[tensor.type].format;
    offsets.push_back(in.number<uint64_t>(tensor.name));
    if (offsets.back() % alignment != 0) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': offset {} is not a multiple of {}", path_,
           printable(tensor.name), offsets.back(), alignment);
    }
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' occurs twice", path_, printable(tensor.name));
    }
    tensors_.push_back(std::move(tensor));
  }
  if (count == 0) return;
  const uint64_t padding = (alignment - in.position() % alignment) % alignment;
  in.take(padding, "padding before the tensor data");
  place_tensors(in.take(in.left(), "tensor data"), std::move(offsets));
}

void GgufFile::place_tensors(std::span<const std::byte> data, std::vector<uint64_t> offsets) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    const uint64_t offset = offsets[i];
    uint64_t bytes = 0;
    if (tensor.format) {
      const int64_t cols = tensor.shape.back();
      if (cols % traits(*tensor.format).block_elements != 0) {
        fail(ErrorCode::kDataLoss, "{}: tensor '{}': rows of {} are not whole {} blocks", path_,
             printable(tensor.name), cols, gguf_type_name(tensor.type));
      }
      // Below 2^60 elements of at most 4 bytes each (checked above): no overflow.
      bytes = static_cast<uint64_t>(row_bytes(*tensor.format, cols));
      for (size_t d = 0; d + 1 < tensor.shape.size(); ++d) {
        bytes *= static_cast<uint64_t>(tensor.shape[d]);
      }
    }
    if (offset > data.size() || bytes > data.size() - offset) {
      fail(ErrorCode::kDataLoss,
           "{}: tensor '{}': {} bytes at data offset {}, but the data has {} bytes", path_,
           printable(tensor.name), bytes, offset, data.size());
    }
    tensor.bytes = data.subspan(static_cast<size_t>(offset), static_cast<size_t>(bytes));
  }
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = tensors_[order[i - 1]];
    // A tensor of unknown type and size still takes at least one byte.
    const uint64_t end = offsets[order[i - 1]] + std::max<uint64_t>(before.bytes.size(), 1);
    if (end > offsets[order[i]]) {
      fail(ErrorCode::kDataLoss, "{}: tensors '{}' and '{}' overlap", path_, printable(before.name),
           printable(tensors_[order[i]].name));
    }
  }
}

const GgufValue* GgufFile::find(const std::string& key) const {
  const auto at = values_.find(key);
  return at == values_.end() ? nullptr : &at->second;
}

const GgufTensor* GgufFile::find_tensor(const std::string& name) const {
  const auto at = tensor_index_.find(name);
  return at == tensor_index_.end() ? nullptr : &tensors_[at->second];
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> keys;
  keys.reserve(values_.size());
  for (const auto& [key, value] : values_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

void GgufFile::wrong_type(const std::string& key, const char* wanted) const {
  fail(ErrorCode::kDataLoss, "{}: metadata '{}' is not {}", path_, printable(key), wanted);
}

std::optional<int64_t> GgufFile::get_int(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (scalar_size(value->type) == 0) wrong_type(key, "an integer");
  const auto number = load_integer(value->type, value->bytes.data());
  if (!number) wrong_type(key, "an integer");
  return number;
}

std::optional<double> GgufFile::get_number(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type == GgufType::kF32) return load<float>(value->bytes.data());
  if (value->type == GgufType::kF64) return load<double>(value->bytes.data());
  if (scalar_size(value->type) == 0) wrong_type(key, "a number");
  const auto number = load_integer(value->type, value->bytes.data());
  if (!number) wrong_type(key, "a number");
  return static_cast<double>(*number);
}

std::optional<bool> GgufFile::get_bool(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kBool) wrong_type(key, "a boolean");
  return value->bytes[0] != std::byte{0};
}

std::optional<std::string> GgufFile::get_string(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kString) wrong_type(key, "a string");
  return std::string(as_text(value->bytes));
}

const GgufValue* GgufFile::find_array(const std::string& key, const char* wanted) const {
  const GgufValue* value = find(key);
  if (value != nullptr && value->type != GgufType::kArray) wrong_type(key, wanted);
  return value;
}

std::optional<std::vector<std::string>> GgufFile::get_string_array(const std::string& key) const {
  const GgufValue* value = find_array(key, "an array of strings");
  if (value == nullptr) return std::nullopt;
  if (value->element != GgufType::kString) wrong_type(key, "an array of strings");
  std::vector<std::string> strings;
  strings.reserve(value->count);
  Reader in(value->bytes, path_);
  for (uint64_t i = 0; i < value->count; ++i) strings.emplace_back(as_text(in.string(key)));
  return strings;
}

std::optional<std::vector<int64_t>> GgufFile::get_int_array(const std::string& key) const {
  const GgufValue* value = find_array(key, "an array of integers");
  if (value == nullptr) return std::nullopt;
  const size_t size = scalar_size(value->element);
  std::vector<int64_t> numbers;
  numbers.reserve(size == 0 ? 0 : value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number =
        size == 0 ? std::nullopt : load_integer(value->element, value->bytes.data() + i * size);
    if (!number) wrong_type(key, "an array of integers");
    numbers.push_back(*number);
  }
  return numbers;
}

std::optional<std::vector<float>> GgufFile::get_float_array(const std::string& key) const {
  const GgufValue* value = find_array(key, "an array of numbers");
  if (value == nullptr) return std::nullopt;
  if (value->element != GgufType::kF32) wrong_type(key, "an array of float32");
  std::vector<float> numbers(value->count);
  if (!numbers.empty()) std::memcpy(numbers.data(), value->bytes.data(), value->bytes.size());
  return numbers;
}

}  // namespace trireme
