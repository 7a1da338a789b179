#include "runtime/instance_tokenizer.h"

#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"
#include "runtime/model/gguf.h"
#include "runtime/tokenizer_folder.h"
#include "runtime/tokenizer_gguf.h"

namespace trireme {
namespace {

std::unique_ptr<Tokenizer> from_directory(const std::filesystem::path& directory) {
  if (!has_tokenizer(directory.string())) return nullptr;
  return std::make_unique<Tokenizer>(read_tokenizer(directory.string()));
}

// The charsmap is an array of bytes, which GGUF writers give either sign.
std::string bytes_of(const std::vector<int64_t>& values) {
  std::string bytes;
  bytes.reserve(values.size());
  for (const int64_t value : values) bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::unique_ptr<Tokenizer> from_gguf(const std::string& path) {
  const MappedFile mapped(path);
  const GgufFile file(mapped.bytes(), path);
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  auto model = file.get_string(key("model"));
  auto tokens = file.get_string_array(key("tokens"));
  if (!model && !tokens) return nullptr;
  if (model && (*model == "no_vocab" || *model == "none")) return nullptr;
  if (!model || !tokens) {
    fail(ErrorCode::kDataLoss, "{}: '{}' is missing", path, key(model ? "tokens" : "model"));
  }
  GgufVocab vocab;
  vocab.source = path;
  vocab.model = *std::move(model);
  vocab.pre = file.get_string(key("pre")).value_or("");
  vocab.tokens = *std::move(tokens);
  if (const auto types = file.get_int_array(key("token_type"))) {
    vocab.token_types.assign(types->begin(), types->end());
  }
  vocab.merges = file.get_string_array(key("merges")).value_or(std::vector<std::string>{});
  vocab.scores = file.get_float_array(key("scores")).value_or(std::vector<float>{});
  if (const auto map = file.get_int_array(key("precompiled_charsmap"))) {
    vocab.charsmap = bytes_of(*map);
  }
  vocab.unknown_id = file.get_int(key("unknown_token_id"));
  vocab.add_space_prefix = file.get_bool(key("add_space_prefix"));
  vocab.remove_extra_whitespaces = file.get_bool(key("remove_extra_whitespaces"));
  vocab.bos_id = file.get_int(key("bos_token_id"));
  vocab.eos_id = file.get_int(key("eos_token_id"));
  vocab.add_bos = file.get_bool(key("add_bos_token"));
  vocab.add_eos = file.get_bool(key("add_eos_token"));
  vocab.chat_template = file.get_string("tokenizer.chat_template").value_or("");
  return std::make_unique<Tokenizer>(tokenizer_spec_from_gguf(std::move(vocab)));
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& model, int64_t vocab) {
  auto tokenizer = std::filesystem::is_directory(model) ? from_directory(model) : from_gguf(model);
  if (tokenizer && tokenizer->vocab_size() > vocab) {
    fail(ErrorCode::kDataLoss, "{}: the tokenizer has {} ids, the model's embedding {} rows", model,
         tokenizer->vocab_size(), vocab);
  }
  return tokenizer;
}

}  // namespace trireme
