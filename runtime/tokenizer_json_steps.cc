// Normalizer, pre-tokenizer, post-processor and decoder of tokenizer.json.
#include <vector>

#include "runtime/tokenizer_json_field.h"
#include "runtime/tokenizer_patterns.h"

namespace trireme {
namespace {

using Split = TokenizerSpec::Split;

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

[[noreturn]] void unknown_type(const JsonField& step) {
  step.unsupported("of type " + step["type"].string());
}

// A regex that matches `text` alone.
std::string quoted(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
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
    if (step["type"].string() != "NFC") unknown_type(step);
    spec.nfc = true;
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
    } else if (type == "WhitespaceSplit") {
      spec.splits.push_back({Split::Kind::kRegexRemoved, "\\s", false});
    } else {
      unknown_type(step);
    }
  }
  if (!byte_level) {
    fail(ErrorCode::kUnimplemented, "{}: a pre_tokenizer without ByteLevel is not supported",
         spec.source);
  }
}

void read_post_processor(const JsonField& root, TokenizerSpec& spec) {
  bool has_template = false;
  for (const JsonField& step : steps_of(root, "post_processor", "processors")) {
    const std::string type = step["type"].string();
    if (type == "ByteLevel") continue;  // it only moves offsets
    if (type != "TemplateProcessing") unknown_type(step);
    if (has_template) step.unsupported("of type TemplateProcessing, twice,");
    has_template = true;
    read_template(step, spec);
  }
}

void check_decoder(const JsonField& root) {
  const std::vector<JsonField> steps = steps_of(root, "decoder", "decoders");
  if (steps.empty()) root.unsupported("decoder null");
  for (const JsonField& step : steps) {
    if (step["type"].string() != "ByteLevel") unknown_type(step);
  }
}

}  // namespace trireme
