// Normalizer, pre-tokenizer, post-processor and decoder of tokenizer.json.
#include <algorithm>
#include <iterator>
#include <vector>

#include "runtime/base64.h"
#include "runtime/tokenizer_json_field.h"
#include "runtime/tokenizer_patterns.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

using Split = TokenizerSpec::Split;
using Normalize = TokenizerSpec::Normalize;
using Form = Normalize::Kind;

constexpr struct {
  const char* name;
  Form kind;
} kForms[] = {{"NFC", Form::kNfc},
              {"NFD", Form::kNfd},
              {"NFKC", Form::kNfkc},
              {"NFKD", Form::kNfkd},
              {"Lowercase", Form::kLowercase}};

// The steps under `key`, Sequences (which name their list `list`) taken apart. Depth is bounded by
// the parser.
void flatten(const JsonField& step, const char* list, std::vector<JsonField>& out) {
  if (step.object()["type"].string() != "Sequence") {
    out.push_back(step);
    return;
  }
  const JsonField parts = step[list].array();
  for (size_t i = 0; i < parts.size(); ++i) flatten(parts[i], list, out);
}

std::vector<JsonField> steps_of(const JsonField& root, const char* key, const char* list) {
  std::vector<JsonField> steps;
  if (root.has(key)) flatten(root[key], list, steps);
  return steps;
}

[[noreturn]] void unknown_type(const JsonField& step, const char* known) {
  step.unsupported("of type " + step["type"].string(), known);
}

constexpr const char* kNormalizers =
    "Lowercase, NFC, NFD, NFKC, NFKD, Precompiled, Prepend, Replace, Sequence, Strip";
constexpr const char* kPreTokenizers =
    "ByteLevel, Digits, Metaspace, Sequence, Split, WhitespaceSplit";
constexpr const char* kPostProcessors = "ByteLevel, Sequence, TemplateProcessing";
constexpr const char* kDecoders = "ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence, Strip";

// A regex that matches `text` alone.
std::string quoted(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

// One character, as a string.
std::string one_character(const JsonField& field) {
  const std::string& text = field.string();
  if (text.empty() || utf8_step(text).length != text.size()) {
    field.lose("{} is '{}', not one character", field.path(), text);
  }
  return text;
}

Normalize read_replace(const JsonField& step) {
  const JsonField pattern = step["pattern"].object();
  const std::string& content = step["content"].string();
  if (pattern.has("String")) return {Form::kReplaceText, pattern["String"].string(), content};
  return {Form::kReplaceRegex, pattern["Regex"].string(), content};
}

Split read_metaspace(const JsonField& step) {
  Split split{};
  split.kind = Split::Kind::kMetaspace;
  split.pattern = one_character(step["replacement"]);
  split.cut = step.boolean("split", true);
  // Files from before 2024 have add_prefix_space.
  const bool prefix = step.boolean("add_prefix_space", true);
  const std::string scheme = step.string("prepend_scheme", prefix ? "always" : "never");
  if (scheme == "always") {
    split.prepend = Split::Prepend::kAlways;
  } else if (scheme == "first") {
    split.prepend = Split::Prepend::kFirst;
  } else if (scheme != "never") {
    step.unsupported("with prepend_scheme " + scheme, "always, first, never");
  }
  return split;
}

Split read_split(const JsonField& step) {
  const JsonField pattern = step["pattern"].object();
  Split split{};
  split.invert = step.boolean("invert", false);
  split.pattern =
      pattern.has("String") ? quoted(pattern["String"].string()) : pattern["Regex"].string();
  const std::string behavior = step["behavior"].string();
  if (behavior == "Isolated") {
    split.kind = Split::Kind::kRegexIsolated;
  } else if (behavior == "Removed") {
    split.kind = Split::Kind::kRegexRemoved;
  } else if (behavior == "Contiguous") {
    split.kind = Split::Kind::kRegexContiguous;
  } else if (behavior == "MergedWithPrevious") {
    split.kind = Split::Kind::kRegexMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    split.kind = Split::Kind::kRegexMergedWithNext;
  } else {
    step.unsupported("with behavior " + behavior);
  }
  return split;
}

// "<s> A </s>": what stands before and after the text.
void read_template(const JsonField& step, TokenizerSpec& spec) {
  const JsonField single = step["single"].array();
  std::vector<int32_t>* ids = &spec.prefix_ids;
  for (size_t i = 0; i < single.size(); ++i) {
    const JsonField item = single[i].object();
    if (item.has("Sequence")) {
      if (ids == &spec.suffix_ids) single.unsupported("with the text twice");
      ids = &spec.suffix_ids;
      continue;
    }
    const std::string name = item["SpecialToken"]["id"].string();
    const JsonField token = step["special_tokens"].object()[name.c_str()];
    const JsonField list = token["ids"].array();
    for (size_t k = 0; k < list.size(); ++k) ids->push_back(list[k].id());
  }
  if (ids == &spec.prefix_ids) single.lose("{} has no Sequence", single.path());
}

}  // namespace

void read_normalizer(const JsonField& root, TokenizerSpec& spec) {
  for (const JsonField& step : steps_of(root, "normalizer", "normalizers")) {
    const std::string type = step["type"].string();
    if (type == "Strip") {
      if (step.boolean("strip_left", true)) spec.normalizers.push_back({Form::kStripLeft, "", ""});
      if (step.boolean("strip_right", true)) spec.normalizers.push_back({Form::kStripRight, "", ""});
    } else if (type == "Replace") {
      spec.normalizers.push_back(read_replace(step));
    } else if (type == "Prepend") {
      spec.normalizers.push_back({Form::kPrepend, "", step["prepend"].string()});
    } else if (type == "Precompiled") {
      const JsonField map = step["precompiled_charsmap"];
      const auto blob = decode_base64(map.string());
      if (!blob) map.lose("{} is not base64", map.path());
      spec.normalizers.push_back({Form::kPrecompiled, "", *blob});
    } else if (const auto* form = std::find_if(
                   std::begin(kForms), std::end(kForms),
                   [&](const auto& known) { return type == known.name; });
               form != std::end(kForms)) {
      spec.normalizers.push_back({form->kind, "", ""});
    } else {
      unknown_type(step, kNormalizers);
    }
  }
}

void read_pre_tokenizer(const JsonField& root, TokenizerSpec& spec) {
  bool byte_level = false;
  for (const JsonField& step : steps_of(root, "pre_tokenizer", "pretokenizers")) {
    const std::string type = step["type"].string();
    if (byte_level) step.unsupported("of type " + type + " after ByteLevel");
    if (type == "ByteLevel") {
      byte_level = true;
      if (step.boolean("add_prefix_space", true)) {
        spec.splits.push_back({Split::Kind::kPrefixSpace, "", false});
      }
      if (step.boolean("use_regex", true)) {
        spec.splits.push_back({Split::Kind::kRegexIsolated, kGpt2Pattern, false});
      }
    } else if (type == "Digits") {
      spec.splits.push_back({step.boolean("individual_digits", false)
                                 ? Split::Kind::kDigitsIndividual
                                 : Split::Kind::kDigitsContiguous,
                             "", false});
    } else if (type == "Split") {
      spec.splits.push_back(read_split(step));
    } else if (type == "Metaspace") {
      spec.splits.push_back(read_metaspace(step));
    } else if (type == "WhitespaceSplit") {
      spec.splits.push_back({Split::Kind::kRegexRemoved, "\\s", false});
    } else {
      unknown_type(step, kPreTokenizers);
    }
  }
  if (spec.model == TokenizerSpec::Model::kUnigram) {
    if (byte_level) root["pre_tokenizer"].unsupported("of type ByteLevel before a unigram model");
  } else if (!byte_level) {
    spec.model = TokenizerSpec::Model::kCharacterBpe;
  }
}

void read_post_processor(const JsonField& root, TokenizerSpec& spec) {
  bool has_template = false;
  for (const JsonField& step : steps_of(root, "post_processor", "processors")) {
    const std::string type = step["type"].string();
    if (type == "ByteLevel") continue;  // it only moves offsets
    if (type != "TemplateProcessing") unknown_type(step, kPostProcessors);
    if (has_template) step.unsupported("of type TemplateProcessing, twice,");
    has_template = true;
    read_template(step, spec);
  }
}

void read_decoder(const JsonField& root, TokenizerSpec& spec) {
  const std::vector<JsonField> steps = steps_of(root, "decoder", "decoders");
  if (steps.empty()) root.unsupported("decoder null", kDecoders);
  TokenizerSpec::Decode& decode = spec.decode;
  bool fused = false;
  bool byte_level = false;
  decode.bytes = TokenizerSpec::Decode::Bytes::kNone;
  for (const JsonField& step : steps) {
    const std::string type = step["type"].string();
    if (type == "ByteLevel") {
      if (steps.size() > 1) step.unsupported("of type ByteLevel beside others");
      byte_level = true;
      decode.bytes = TokenizerSpec::Decode::Bytes::kAlphabet;
    } else if (type == "Fuse") {
      fused = true;
    } else if (fused && type != "Strip") {
      step.unsupported("of type " + type + " after Fuse", "Strip");
    } else if (type == "Replace") {
      if (decode.bytes != TokenizerSpec::Decode::Bytes::kNone || !decode.mark.empty()) {
        step.unsupported("of type Replace after ByteFallback or Metaspace");
      }
      decode.steps.push_back(read_replace(step));
    } else if (type == "ByteFallback") {
      decode.bytes = TokenizerSpec::Decode::Bytes::kRuns;
    } else if (type == "Metaspace") {
      if (!decode.steps.empty()) step.unsupported("of type Metaspace after Replace");
      const Split space = read_metaspace(step);
      decode.mark = space.pattern;
      decode.lead = space.prepend == Split::Prepend::kNever
                        ? TokenizerSpec::Decode::Lead::kKeep
                        : TokenizerSpec::Decode::Lead::kDropFirst;
    } else if (type == "Strip") {
      if (!fused) step.unsupported("of type Strip before Fuse");
      if (!decode.strip.empty()) step.unsupported("of type Strip, twice,");
      decode.strip = one_character(step["content"]);
      decode.strip_start = step.count("start", 0);
      decode.strip_stop = step.count("stop", 0);
    } else {
      unknown_type(step, kDecoders);
    }
  }
  if (byte_level != (spec.model == TokenizerSpec::Model::kByteBpe)) {
    root["decoder"].unsupported(byte_level ? "of type ByteLevel without such a pre_tokenizer"
                                           : "without ByteLevel after such a pre_tokenizer");
  }
}

}  // namespace trireme
