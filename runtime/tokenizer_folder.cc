#include "runtime/tokenizer_folder.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "runtime/model/json_file.h"
#include "runtime/tokenizer_json_field.h"
#include "runtime/tokenizer_ranks.h"
#include "runtime/tokenizer_sentencepiece.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::optional<fs::path> find_file(const fs::path& folder) {
  for (const char* name : {"tokenizer.json", "tekken.json", "tokenizer.model"}) {
    if (fs::exists(folder / name)) return folder / name;
  }
  std::vector<fs::path> ranks;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".tiktoken") ranks.push_back(entry.path());
  }
  if (ranks.empty()) return std::nullopt;
  return *std::min_element(ranks.begin(), ranks.end());
}

// Which of the two are put around texts: tokenizer_config.json says, else the model's BOS alone.
TokenizerSpec read_model_file(const fs::path& path) {
  const MappedFile mapped(path.string());
  const std::string_view bytes(reinterpret_cast<const char*>(mapped.bytes().data()),
                               mapped.bytes().size());
  if (is_ranks(bytes)) return read_ranks(bytes, path.string());
  SentencePieces model = read_sentencepiece(bytes, path.string());
  bool add_bos = model.bos_id >= 0;
  bool add_eos = false;
  const std::string config = (path.parent_path() / "tokenizer_config.json").string();
  if (fs::exists(config)) {
    const nlohmann::json value = read_json_file(config);
    const JsonField root(value, config, "");
    add_bos = root.boolean("add_bos_token", add_bos);
    add_eos = root.boolean("add_eos_token", false);
  }
  return tokenizer_spec_of(std::move(model), add_bos, add_eos);
}

}  // namespace

bool has_tokenizer(const std::string& folder) { return find_file(folder).has_value(); }

TokenizerSpec read_tokenizer(const std::string& name) {
  fs::path path = name;
  if (fs::is_directory(path)) {
    const auto found = find_file(path);
    if (!found) fail(ErrorCode::kNotFound, "{}: no tokenizer", name);
    path = *found;
  }
  if (path.filename() == "tokenizer.json") return read_tokenizer_json(path.string());
  TokenizerSpec spec;
  if (path.extension() == ".json") {
    spec = path.filename().string().starts_with("tekken") ? read_tekken(path.string())
                                                          : read_tokenizer_json(path.string());
  } else {
    spec = read_model_file(path);
  }
  spec.chat_template = read_chat_template(path.parent_path().string());
  return spec;
}

}  // namespace trireme
