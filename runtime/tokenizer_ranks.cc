#include "runtime/tokenizer_ranks.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "base/error.h"
#include "runtime/base64.h"
#include "runtime/bpe_hash.h"
#include "runtime/model/json_file.h"
#include "runtime/tokenizer_json_field.h"
#include "runtime/tokenizer_patterns.h"

namespace trireme {
namespace {

using Split = TokenizerSpec::Split;

constexpr size_t kMaxRanks = 1 << 22;

// In the byte-level alphabet.
std::string spelled(std::string_view bytes) {
  static const auto alphabet = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(token_of_byte(static_cast<uint8_t>(byte)));
    }
    return tokens;
  }();
  std::string token;
  for (const char byte : bytes) token += alphabet[static_cast<uint8_t>(byte)];
  return token;
}

std::vector<std::string> llama3_special() {
  std::vector<std::string> names = {
      "<|begin_of_text|>",           "<|end_of_text|>",
      "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
      "<|finetune_right_pad_id|>",   "<|step_id|>",
      "<|start_header_id|>",         "<|end_header_id|>",
      "<|eom_id|>",                  "<|eot_id|>",
      "<|python_tag|>"};
  for (int i = 2; names.size() < 256; ++i) {
    names.push_back(fmt::format("<|reserved_special_token_{}|>", i));
  }
  return names;
}

std::vector<std::string> qwen_special() {
  std::vector<std::string> names = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 205; ++i) names.push_back(fmt::format("<|extra_{}|>", i));
  return names;
}

struct Known {
  const char* name;
  size_t ranks;
  const char* pattern;
  bool nfc;
  bool bos;  // the first special token is put before every text
  std::vector<std::string> (*special)();
};
constexpr Known kKnown[] = {
    {"Llama 3", 128'000, kLlama3Pattern, false, true, llama3_special},
    {"Qwen", 151'643, kQwen2Pattern, true, false, qwen_special},
};

// What both kinds of file have in common: ids are ranks.
TokenizerSpec base_spec(const std::string& source, const std::string& pattern) {
  TokenizerSpec spec;
  spec.source = source;
  spec.ignore_merges = true;
  spec.splits.push_back({Split::Kind::kRegexIsolated, pattern});
  return spec;
}

void add_special(TokenizerSpec& spec, const std::string& text) {
  spec.added.push_back(
      {.id = static_cast<int32_t>(spec.tokens.size()), .text = text, .special = true});
  spec.tokens.emplace_back();
  spec.merge_ranks.push_back(-1);
}

void add_token(TokenizerSpec& spec, std::string_view bytes, int32_t rank) {
  spec.tokens.push_back(spelled(bytes));
  spec.merge_ranks.push_back(rank);
}

// One line; false if it is not "BASE64 RANK".
bool read_line(std::string_view line, std::string& bytes, size_t& rank) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) return false;
  const auto decoded = decode_base64(line.substr(0, space));
  const std::string_view number = line.substr(space + 1);
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), rank);
  if (!decoded || decoded->empty() || number.empty() || parsed.ec != std::errc() ||
      parsed.ptr != number.data() + number.size()) {
    return false;
  }
  bytes = *decoded;
  return true;
}

// The line that ends before the next newline, without a carriage return; advances `text`.
std::string_view take_line(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

std::vector<std::string> read_lines(std::string_view text, const std::string& source) {
  std::vector<std::string> ranks;
  for (size_t number = 1; !text.empty(); ++number) {
    const std::string_view line = take_line(text);
    if (line.empty()) continue;
    std::string bytes;
    size_t rank = 0;
    if (!read_line(line, bytes, rank)) {
      fail(ErrorCode::kDataLoss, "{}: line {} is not a token in base64 and its rank", source,
           number);
    }
    if (rank != ranks.size() || rank >= kMaxRanks) {
      fail(ErrorCode::kDataLoss, "{}: line {} has rank {}, not {}", source, number, rank,
           ranks.size());
    }
    ranks.push_back(std::move(bytes));
  }
  return ranks;
}

constexpr const char* kTekkenSpecial[] = {"<unk>",
                                          "<s>",
                                          "</s>",
                                          "[INST]",
                                          "[/INST]",
                                          "[AVAILABLE_TOOLS]",
                                          "[/AVAILABLE_TOOLS]",
                                          "[TOOL_RESULTS]",
                                          "[/TOOL_RESULTS]",
                                          "[TOOL_CALLS]",
                                          "[IMG]",
                                          "<pad>",
                                          "[IMG_BREAK]",
                                          "[IMG_END]",
                                          "[PREFIX]",
                                          "[MIDDLE]",
                                          "[SUFFIX]",
                                          "[SYSTEM_PROMPT]",
                                          "[/SYSTEM_PROMPT]",
                                          "[TOOL_CONTENT]"};

// Files of newer versions list them; the others have those above. What is left is filled up.
void read_tekken_special(const JsonField& root, size_t count, TokenizerSpec& spec) {
  std::vector<std::string> names(count);
  if (root.has("special_tokens")) {
    const JsonField list = root["special_tokens"].array();
    for (size_t i = 0; i < list.size(); ++i) {
      const JsonField item = list[i].object();
      const auto rank = static_cast<size_t>(item["rank"].id());
      if (rank >= count) item.lose("{} has rank {} of {}", item.path(), rank, count);
      names[rank] = item["token_str"].string();
    }
  } else {
    for (size_t i = 0; i < std::min(count, std::size(kTekkenSpecial)); ++i) {
      names[i] = kTekkenSpecial[i];
    }
  }
  for (size_t i = 0; i < count; ++i) {
    add_special(spec, names[i].empty() ? fmt::format("<SPECIAL_{}>", i) : names[i]);
  }
}

}  // namespace

bool is_ranks(std::string_view text) {
  std::string bytes;
  size_t rank = 0;
  return read_line(take_line(text), bytes, rank) && rank == 0;
}

TokenizerSpec read_ranks(std::string_view text, const std::string& source) {
  const std::vector<std::string> ranks = read_lines(text, source);
  const auto* known = std::find_if(std::begin(kKnown), std::end(kKnown),
                                   [&](const Known& row) { return row.ranks == ranks.size(); });
  if (known == std::end(kKnown)) {
    fail(ErrorCode::kUnimplemented,
         "{}: {} ranks, and nothing says how texts are cut; known: 128000 (Llama 3), 151643 (Qwen)",
         source, ranks.size());
  }
  TokenizerSpec spec = base_spec(source, known->pattern);
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    add_token(spec, ranks[rank], static_cast<int32_t>(rank));
  }
  if (known->nfc) spec.normalizers.push_back({TokenizerSpec::Normalize::Kind::kNfc, "", ""});
  for (const std::string& name : known->special()) add_special(spec, name);
  if (known->bos) spec.prefix_ids = {static_cast<int32_t>(ranks.size())};
  return spec;
}

namespace {

TokenizerSpec tekken_spec(const nlohmann::json& value, const std::string& path) {
  const JsonField root(value, path, "");
  if (!value.is_object()) root.lose("not a JSON object");
  const JsonField config = root["config"].object();
  const auto ids = static_cast<size_t>(config["default_vocab_size"].id());
  const auto special = static_cast<size_t>(config["default_num_special_tokens"].id());
  const JsonField vocab = root["vocab"].array();
  if (special < 3 || special >= ids || ids - special > vocab.size() || special > kMaxRanks) {
    config.lose("config.default_vocab_size is {}, of which {} are special, but there are {} tokens",
                ids, special, vocab.size());
  }
  TokenizerSpec spec = base_spec(path, config["pattern"].string());
  read_tekken_special(root, special, spec);
  for (size_t i = 0; i < ids - special; ++i) {
    const JsonField item = vocab[i].object();
    const JsonField text = item["token_bytes"];
    const auto bytes = decode_base64(text.string());
    if (!bytes || bytes->empty()) text.lose("{} is not base64", text.path());
    if (static_cast<size_t>(item["rank"].id()) != i) {
      item.lose("{}.rank is not {}", item.path(), i);
    }
    add_token(spec, *bytes, static_cast<int32_t>(i));
  }
  spec.prefix_ids = {1};
  return spec;
}

}  // namespace

TokenizerSpec parse_tekken(std::string_view text, const std::string& source) {
  return tekken_spec(parse_json(text, source), source);
}

TokenizerSpec read_tekken(const std::string& path) {
  return tekken_spec(read_json_file(path), path);
}

}  // namespace trireme
