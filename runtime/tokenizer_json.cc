#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "runtime/model/json_file.h"
#include "runtime/tokenizer.h"
#include "runtime/tokenizer_json_field.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr size_t kMaxHoles = 1 << 20;  // unused ids; a file's size bounds the used ones

void read_vocab(const JsonField& model, TokenizerSpec& spec) {
  const JsonField vocab = model["vocab"].object();
  size_t ids = 0;
  for (const auto& [token, value] : vocab.value().items()) {
    const JsonField field(value, spec.source, "model.vocab['" + token + "']");
    ids = std::max(ids, static_cast<size_t>(field.id()) + 1);
  }
  if (ids > vocab.size() + kMaxHoles) {
    vocab.lose("model.vocab has {} tokens but an id of {}", vocab.size(), ids - 1);
  }
  spec.tokens.resize(ids);
  for (const auto& [token, value] : vocab.value().items()) {
    if (token.empty()) continue;
    std::string& slot = spec.tokens[value.get<size_t>()];
    if (!slot.empty()) {
      vocab.lose("model.vocab gives '{}' and '{}' the same id {}", slot, token,
                 value.get<size_t>());
    }
    slot = token;
  }
}

// A merge is "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const JsonField& merge) {
  if (merge.value().is_array()) {
    if (merge.size() != 2) merge.lose("{} is not a pair", merge.path());
    return {merge[size_t{0}].string(), merge[size_t{1}].string()};
  }
  const std::string& text = merge.string();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    merge.lose("{} is '{}', not two tokens", merge.path(), text);
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const JsonField& model, TokenizerSpec& spec) {
  const JsonField merges = model["merges"].array();
  spec.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) spec.merges.push_back(read_merge(merges[i]));
}

// [["token", score], …]; ids count from 0.
void read_unigram(const JsonField& model, TokenizerSpec& spec) {
  spec.model = TokenizerSpec::Model::kUnigram;
  spec.byte_fallback = model.boolean("byte_fallback", false);
  spec.fuse_unknown = true;
  const JsonField vocab = model["vocab"].array();
  spec.tokens.reserve(vocab.size());
  spec.scores.reserve(vocab.size());
  for (size_t i = 0; i < vocab.size(); ++i) {
    const JsonField pair = vocab[i].array();
    if (pair.size() != 2) pair.lose("{} is not a token and its score", pair.path());
    spec.tokens.push_back(pair[size_t{0}].string());
    spec.scores.push_back(pair[size_t{1}].number());
  }
  if (model.has("unk_id")) spec.unknown_id = model["unk_id"].id();
}

void read_model(const JsonField& root, TokenizerSpec& spec) {
  const JsonField model = root["model"].object();
  // Files from before 2020 have no type.
  const std::string type = model.string("type", "BPE");
  if (type == "Unigram") {
    read_unigram(model, spec);
    return;
  }
  if (type != "BPE") model.unsupported("of type " + type, "BPE, Unigram");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string(key, "").empty()) model.unsupported(key);
  }
  if (model.has("dropout") && model["dropout"].value() != 0.0) model.unsupported("dropout");
  spec.byte_fallback = model.boolean("byte_fallback", false);
  spec.ignore_merges = model.boolean("ignore_merges", false);
  spec.fuse_unknown = model.boolean("fuse_unk", false);
  read_vocab(model, spec);
  read_merges(model, spec);
  const std::string unknown = model.string("unk_token", "");
  if (unknown.empty()) return;
  const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), unknown);
  if (found != spec.tokens.end())
    spec.unknown_id = static_cast<int32_t>(found - spec.tokens.begin());
}

void read_added(const JsonField& root, TokenizerSpec& spec) {
  if (!root.has("added_tokens")) return;
  const JsonField list = root["added_tokens"].array();
  size_t ids = spec.tokens.size();
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonField item = list[i].object();
    AddedToken token;
    token.id = item["id"].id();
    token.text = item["content"].string();
    token.special = item.boolean("special", false);
    token.single_word = item.boolean("single_word", false);
    token.lstrip = item.boolean("lstrip", false);
    token.rstrip = item.boolean("rstrip", false);
    token.normalized = item.boolean("normalized", !token.special);
    ids = std::max(ids, static_cast<size_t>(token.id) + 1);
    if (ids > spec.tokens.size() + kMaxHoles) {
      item.lose("{} has id {}, but the vocabulary has {} tokens", item.path(), token.id,
                spec.tokens.size());
    }
    spec.added.push_back(std::move(token));
  }
  spec.tokens.resize(ids);
  if (!spec.scores.empty()) spec.scores.resize(ids);
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A string, or a list of {name, template} of which "default" counts.
std::string template_of(const JsonField& config) {
  if (!config.has("chat_template")) return "";
  const JsonField field = config["chat_template"];
  if (!field.value().is_array()) return field.string();
  for (size_t i = 0; i < field.size(); ++i) {
    const JsonField item = field[i].object();
    if (item["name"].string() == "default") return item["template"].string();
  }
  return "";
}

}  // namespace

std::string read_chat_template(const std::string& name) {
  const std::filesystem::path folder(name);
  const std::filesystem::path jinja = folder / "chat_template.jinja";
  if (std::filesystem::exists(jinja)) return read_text(jinja);
  const std::string config = folder / "tokenizer_config.json";
  if (!std::filesystem::exists(config)) return "";
  const json root = read_json_file(config);
  return template_of(JsonField(root, config, "").object());
}

namespace {

TokenizerSpec spec_of(const json& value, const std::string& source) {
  TokenizerSpec spec;
  spec.source = source;
  const JsonField root(value, spec.source, "");
  if (!value.is_object()) root.lose("not a JSON object");
  read_model(root, spec);
  read_added(root, spec);
  read_normalizer(root, spec);
  read_pre_tokenizer(root, spec);
  read_post_processor(root, spec);
  read_decoder(root, spec);
  return spec;
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view text, const std::string& source) {
  return spec_of(parse_json(text, source), source);
}

TokenizerSpec read_tokenizer_json(const std::string& path) {
  TokenizerSpec spec = spec_of(read_json_file(path), path);
  spec.chat_template = read_chat_template(std::filesystem::path(path).parent_path());
  return spec;
}

}  // namespace trireme
