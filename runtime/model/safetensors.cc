#include "runtime/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "base/error.h"
#include "runtime/model/json_file.h"

namespace trireme {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are read in place");

constexpr uint64_t kLargestHeader = uint64_t{100} << 20;  // as the format's own library has it
constexpr size_t kMostDimensions = 8;

std::optional<QuantFormat> format_of(const std::string& dtype) {
  if (dtype == "F32") return QuantFormat::kF32;
  if (dtype == "F16") return QuantFormat::kF16;
  if (dtype == "BF16") return QuantFormat::kBF16;
  return std::nullopt;
}

class TableParser {
 public:
  TableParser(std::span<const std::byte> data, const std::string& path)
      : data_(data), path_(path) {}

  SafeTensor parse(const std::string& name, const Json& entry) {
    const JsonFields fields(entry, path_ + ": tensor '" + printable(name) + "'");
    SafeTensor tensor;
    tensor.name = name;
    tensor.dtype = fields.string("dtype").value_or("");
    if (tensor.dtype.empty()) bad(name, "field 'dtype' is missing");
    tensor.format = format_of(tensor.dtype);
    tensor.shape = natural_numbers(fields, name, "shape", kMostDimensions);
    const auto offsets = natural_numbers(fields, name, "data_offsets", 2);
    if (offsets.size() != 2) bad(name, "field 'data_offsets' is not a pair");
    const auto begin = static_cast<uint64_t>(offsets[0]);
    const auto end = static_cast<uint64_t>(offsets[1]);
    if (begin > end || end > data_.size()) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': data_offsets [{}, {}] outside of {} data bytes",
           path_, printable(name), begin, end, data_.size());
    }
    tensor.bytes = data_.subspan(begin, end - begin);
    if (tensor.format) check_size(tensor);
    return tensor;
  }

 private:
  [[noreturn]] void bad(const std::string& name, const char* what) const {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}': {}", path_, printable(name), what);
  }

  std::vector<int64_t> natural_numbers(const JsonFields& fields, const std::string& name,
                                       const char* key, size_t most) const {
    const Json* list = fields.find(key);
    std::vector<int64_t> numbers;
    const bool fits = list != nullptr && list->is_array() && list->size() <= most;
    for (size_t i = 0; fits && i < list->size(); ++i) {
      const Json& item = (*list)[i];
      if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{INT64_MAX}) break;
      numbers.push_back(item.get<int64_t>());
    }
    if (!fits || numbers.size() != list->size()) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': field '{}' is not a list of at most {} sizes",
           path_, printable(name), key, most);
    }
    return numbers;
  }

  void check_size(const SafeTensor& tensor) const {
    const auto unit = static_cast<uint64_t>(row_bytes(*tensor.format, 1));
    uint64_t bytes = unit;
    for (const int64_t size : tensor.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) {
        bad(tensor.name, "the product of its shape overflows");
      }
    }
    if (bytes != tensor.bytes.size()) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': shape and dtype need {} bytes, it has {}", path_,
           printable(tensor.name), bytes, tensor.bytes.size());
    }
    if (reinterpret_cast<uintptr_t>(tensor.bytes.data()) % unit != 0) {
      bad(tensor.name, "its data is not aligned to its elements");
    }
  }

  std::span<const std::byte> data_;
  const std::string& path_;
};

void refuse_overlaps(const std::vector<SafeTensor>& tensors, const std::string& path) {
  std::vector<const SafeTensor*> order;
  for (const SafeTensor& tensor : tensors) {
    if (!tensor.bytes.empty()) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const SafeTensor* a, const SafeTensor* b) {
    return a->bytes.data() < b->bytes.data();
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const auto& before = *order[i - 1];
    if (before.bytes.data() + before.bytes.size() > order[i]->bytes.data()) {
      fail(ErrorCode::kDataLoss, "{}: tensors '{}' and '{}' overlap", path, printable(before.name),
           printable(order[i]->name));
    }
  }
}

}  // namespace

std::vector<SafeTensor> parse_safetensors(std::span<const std::byte> bytes,
                                          const std::string& path) {
  uint64_t header = 0;
  if (bytes.size() < sizeof header) {
    fail(ErrorCode::kDataLoss, "{}: {} bytes are no safetensors file", path, bytes.size());
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto rest = bytes.subspan(sizeof header);
  if (header > rest.size() || header > kLargestHeader) {
    fail(ErrorCode::kDataLoss,
         "{}: the header has {} bytes, but the file has {} and the limit is {}", path, header,
         bytes.size(), kLargestHeader);
  }
  const Json table = parse_json(
      {reinterpret_cast<const char*>(rest.data()), static_cast<size_t>(header)}, path + ": header");
  if (!table.is_object()) fail(ErrorCode::kDataLoss, "{}: header: not a JSON object", path);
  TableParser parser(rest.subspan(static_cast<size_t>(header)), path);
  std::vector<SafeTensor> tensors;
  tensors.reserve(table.size());
  for (const auto& [name, entry] : table.items()) {
    if (name != "__metadata__") tensors.push_back(parser.parse(name, entry));
  }
  refuse_overlaps(tensors, path);
  return tensors;
}

SafetensorsDirectory::SafetensorsDirectory(const std::string& directory) {
  const std::string single = directory + "/model.safetensors";
  const std::string index = single + ".index.json";
  if (std::filesystem::exists(single)) {
    add_file(single);
  } else if (std::filesystem::exists(index)) {
    add_shards(directory, index);
  } else {
    fail(ErrorCode::kNotFound, "{}: neither model.safetensors nor model.safetensors.index.json",
         directory);
  }
}

const SafetensorsDirectory::Entry* SafetensorsDirectory::find(const std::string& name) const {
  const auto at = entries_.find(name);
  return at == entries_.end() ? nullptr : &at->second;
}

void SafetensorsDirectory::add_file(const std::string& path) {
  files_.push_back(std::make_unique<MappedFile>(path));
  const MappedFile* file = files_.back().get();
  for (SafeTensor& tensor : parse_safetensors(file->bytes(), path)) {
    std::string name = tensor.name;
    if (!entries_.emplace(name, Entry{std::move(tensor), file}).second) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' is in another shard too", path, printable(name));
    }
  }
}

void SafetensorsDirectory::add_shards(const std::string& directory, const std::string& index_path) {
  const Json index = read_json_file(index_path);
  const Json* map = JsonFields(index, index_path).find("weight_map");
  if (map == nullptr || !map->is_object()) {
    fail(ErrorCode::kDataLoss, "{}: field 'weight_map' is missing or not an object", index_path);
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [name, value] : map->items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (shard.empty() || shard.find('/') != std::string::npos || shard == "." || shard == "..") {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' names no file of this directory", index_path,
           printable(name));
    }
    shards[shard].push_back(name);
  }
  for (const auto& [shard, names] : shards) {
    const std::string path = directory + "/" + shard;
    add_file(path);
    for (const std::string& name : names) {
      const Entry* entry = find(name);
      if (entry == nullptr || entry->file != files_.back().get()) {
        fail(ErrorCode::kDataLoss, "{}: tensor '{}' is not in it, though {} says so", path,
             printable(name), index_path);
      }
    }
  }
}

}  // namespace trireme
