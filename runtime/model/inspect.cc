#include "runtime/model/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/mapped_file.h"
#include "runtime/model/gguf.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/weight_source.h"

namespace trireme {
namespace {

const char* type_name(GgufType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

int64_t elements_of(const std::string& path, const std::string& name,
                    const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(elements, size, &elements)) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': the product of its shape overflows", path,
           printable(name));
    }
  }
  return elements;
}

Json metadata_value(const GgufFile& file, const std::string& key) {
  const GgufValue& value = *file.find(key);
  switch (value.type) {
    case GgufType::kArray: return fmt::format("{}[{}]", type_name(value.element), value.count);
    case GgufType::kString: return file.get_string(key).value();
    case GgufType::kBool: return file.get_bool(key).value();
    case GgufType::kF32:
    case GgufType::kF64: return file.get_number(key).value();
    case GgufType::kU64: {
      uint64_t number;
      std::memcpy(&number, value.bytes.data(), sizeof number);
      return number;
    }
    default: return file.get_int(key).value();
  }
}

void read_gguf(const std::string& path, ModelFacts& facts) {
  const MappedFile mapped(path);
  const GgufFile file(mapped.bytes(), path);
  facts.format = fmt::format("GGUF v{}", file.version());
  facts.config = Json::object();
  constexpr const char* kTemplate = "tokenizer.chat_template";
  for (const std::string& key : file.keys()) {
    if (key != kTemplate) facts.config[key] = metadata_value(file, key);
  }
  for (const GgufTensor& tensor : file.tensors()) {
    TensorFacts one{tensor.name, gguf_type_name(tensor.type), tensor.shape, std::nullopt,
                    elements_of(path, tensor.name, tensor.shape)};
    if (tensor.format) one.bytes = static_cast<int64_t>(tensor.bytes.size());
    facts.tensors.push_back(std::move(one));
  }
  facts.chat_template = file.get_string(kTemplate).value_or("");
  const std::string model = file.get_string("tokenizer.ggml.model").value_or("none");
  if (model == "none") return;
  const auto pre = file.get_string("tokenizer.ggml.pre");
  facts.tokenizer = pre ? model + ", " + *pre : model;
}

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// chat_template.jinja, or tokenizer_config.json's: one, or the "default" of a list.
std::string directory_template(const std::string& directory) {
  const std::string jinja = directory + "/chat_template.jinja";
  if (std::filesystem::exists(jinja)) return text_of(jinja);
  const std::string path = directory + "/tokenizer_config.json";
  if (!std::filesystem::exists(path)) return "";
  const Json config = read_json_file(path);
  const Json* field = JsonFields(config, path).find("chat_template");
  if (field == nullptr) return "";
  if (field->is_string()) return field->get<std::string>();
  if (!field->is_array()) return "";
  for (const Json& entry : *field) {
    const JsonFields fields(entry, path + ": chat_template");
    if (fields.string("name") == "default") return fields.string("template").value_or("");
  }
  return "";
}

std::string directory_tokenizer(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  if (std::filesystem::exists(path)) {
    const Json file = read_json_file(path);
    const Json* model = JsonFields(file, path).find("model");
    if (model == nullptr) fail(ErrorCode::kDataLoss, "{}: field 'model' is missing", path);
    return JsonFields(*model, path + ": model").string("type").value_or("of an unnamed type");
  }
  return std::filesystem::exists(directory + "/tokenizer.model") ? "SentencePiece" : "";
}

void read_directory(const std::string& path, ModelFacts& facts) {
  facts.format = "safetensors";
  facts.config = read_json_file(path + "/config.json");
  JsonFields(facts.config, path + "/config.json");
  const SafetensorsDirectory files(path);
  for (const auto& [name, entry] : files.entries()) {
    const SafeTensor& tensor = entry.tensor;
    facts.tensors.push_back({name, tensor.dtype, tensor.shape,
                             static_cast<int64_t>(tensor.bytes.size()),
                             elements_of(path, name, tensor.shape)});
  }
  facts.tokenizer = directory_tokenizer(path);
  facts.chat_template = directory_template(path);
}

}  // namespace

ModelFacts inspect_model(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    fail(ErrorCode::kNotFound, "{}: no such file or directory", path);
  }
  ModelFacts facts;
  facts.path = path;
  if (std::filesystem::is_directory(path)) {
    read_directory(path, facts);
  } else if (path.ends_with(".safetensors")) {
    fail(ErrorCode::kInvalidArgument, "{}: give the directory that holds it and config.json", path);
  } else {
    read_gguf(path, facts);
  }
  std::sort(facts.tensors.begin(), facts.tensors.end(),
            [](const TensorFacts& a, const TensorFacts& b) { return a.name < b.name; });
  try {
    open_model(path);
  } catch (const Error& error) {
    facts.refusal = error.what();
  }
  return facts;
}

}  // namespace trireme
