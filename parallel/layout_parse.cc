// Layouts as text: a TOML file, or "tensor=2,pipeline=2" on the command line.
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/error.h"
#include "parallel/layout.h"

namespace trireme {
namespace {

// As good as not given: layers are dealt out.
constexpr std::string_view kAuto = "auto";

constexpr int64_t kMost = 4096;  // ranks, stages or layers; keeps every product in an int

// What either notation says, before it is checked for contradictions.
struct Wanted {
  std::string source;  // the file, or "--layout", for messages
  std::optional<std::vector<int>> tensor;
  std::optional<int> pipeline;
  std::optional<std::vector<int>> stage_layers;
  std::vector<StageSpec> stages;  // of [[stage]] tables
};

int checked(const Wanted& wanted, const std::string& key, int64_t value) {
  if (value < 1 || value > kMost) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is {}, not in 1..{}", wanted.source, key, value,
         kMost);
  }
  return static_cast<int>(value);
}

int toml_int(const Wanted& wanted, const std::string& key, const toml::node& node) {
  const auto value = node.value_exact<int64_t>();
  if (!value) fail(ErrorCode::kInvalidArgument, "{}: {} is no whole number", wanted.source, key);
  return checked(wanted, key, *value);
}

std::vector<int> toml_ints(const Wanted& wanted, const std::string& key, const toml::node& node) {
  const toml::array* array = node.as_array();
  if (array == nullptr || array->empty() || array->size() > static_cast<size_t>(kMost)) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is no list of whole numbers", wanted.source, key);
  }
  std::vector<int> values;
  for (const toml::node& element : *array) values.push_back(toml_int(wanted, key, element));
  return values;
}

[[noreturn]] void fail_unknown(const Wanted& wanted, const std::string& key, const char* known) {
  fail(ErrorCode::kInvalidArgument, "{}: unknown key \"{}\" (known: {})", wanted.source, key,
       known);
}

std::vector<StageSpec> toml_stages(const Wanted& wanted, const toml::node& node) {
  const toml::array* array = node.as_array();
  if (array == nullptr || array->empty() || array->size() > static_cast<size_t>(kMost)) {
    fail(ErrorCode::kInvalidArgument, "{}: stage is no list of [[stage]] tables", wanted.source);
  }
  std::vector<StageSpec> stages;
  for (const toml::node& element : *array) {
    const toml::table* table = element.as_table();
    if (table == nullptr) {
      fail(ErrorCode::kInvalidArgument, "{}: stage is no list of [[stage]] tables", wanted.source);
    }
    StageSpec stage;
    for (const auto& [name, value] : *table) {
      const std::string key{name.str()};
      if (key == "tensor") {
        stage.tensor = toml_int(wanted, "stage.tensor", value);
      } else if (key == "layers") {
        stage.layers = toml_int(wanted, "stage.layers", value);
      } else {
        fail_unknown(wanted, "stage." + key, "tensor, layers");
      }
    }
    stages.push_back(stage);
  }
  return stages;
}

Wanted read_file(const std::string& path) {
  Wanted wanted;
  wanted.source = path;
  toml::table table;
  try {
    table = toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    fail(ErrorCode::kInvalidArgument, "{}:{}: {}", path, error.source().begin.line,
         error.description());
  }
  for (const auto& [name, value] : table) {
    const std::string key{name.str()};
    if (key == "tensor") {
      wanted.tensor = {toml_int(wanted, key, value)};
    } else if (key == "pipeline") {
      wanted.pipeline = toml_int(wanted, key, value);
    } else if (key == "stage_layers") {
      if (const auto text = value.value_exact<std::string_view>()) {
        if (*text == kAuto) continue;
        fail(ErrorCode::kInvalidArgument, "{}: stage_layers is \"{}\": neither \"auto\" nor a list",
             wanted.source, *text);
      }
      wanted.stage_layers = toml_ints(wanted, key, value);
    } else if (key == "stage") {
      wanted.stages = toml_stages(wanted, value);
    } else {
      fail_unknown(wanted, key, "tensor, pipeline, stage_layers, [[stage]]");
    }
  }
  return wanted;
}

// "16+14" or "16".
std::vector<int> inline_ints(const Wanted& wanted, const std::string& key, std::string_view text) {
  std::vector<int> values;
  for (;;) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const size_t used = static_cast<size_t>(end - text.data());
    if (error != std::errc() || (used < text.size() && text[used] != '+')) {
      fail(ErrorCode::kInvalidArgument, "{}: {}={} is no whole number", wanted.source, key, text);
    }
    values.push_back(checked(wanted, key, value));
    if (values.size() > static_cast<size_t>(kMost)) {
      fail(ErrorCode::kInvalidArgument, "{}: {} has more than {} numbers", wanted.source, key,
           kMost);
    }
    if (used == text.size()) return values;
    text.remove_prefix(used + 1);
  }
}

Wanted read_inline(std::string_view text) {
  Wanted wanted;
  wanted.source = "--layout";
  const auto once = [&](bool given, const std::string& key) {
    if (given) fail(ErrorCode::kInvalidArgument, "--layout: {} is given twice", key);
  };
  bool auto_layers = false;
  for (bool more = true; more;) {
    const size_t comma = text.find(',');
    more = comma != std::string_view::npos;
    const std::string_view entry = text.substr(0, comma);
    text.remove_prefix(more ? comma + 1 : text.size());
    const size_t equals = entry.find('=');
    if (equals == std::string_view::npos) {
      fail(ErrorCode::kInvalidArgument, "--layout: \"{}\" is not of the form key=number", entry);
    }
    const std::string key{entry.substr(0, equals)};
    if (key != "tensor" && key != "pipeline" && key != "stage_layers") {
      fail_unknown(wanted, key, "tensor, pipeline, stage_layers");
    }
    if (key == "stage_layers" && entry.substr(equals + 1) == kAuto) {
      once(std::exchange(auto_layers, true) || wanted.stage_layers.has_value(), key);
      continue;
    }
    const auto values = inline_ints(wanted, key, entry.substr(equals + 1));
    if (key == "tensor") {
      once(wanted.tensor.has_value(), key);
      wanted.tensor = values;
    } else if (key == "pipeline") {
      once(wanted.pipeline.has_value(), key);
      if (values.size() != 1) {
        fail(ErrorCode::kInvalidArgument, "--layout: pipeline is one number");
      }
      wanted.pipeline = values[0];
    } else {
      once(auto_layers || wanted.stage_layers.has_value(), key);
      wanted.stage_layers = values;
    }
  }
  return wanted;
}

LayoutSpec to_spec(const Wanted& wanted) {
  if (!wanted.stages.empty()) {
    if (wanted.tensor || wanted.stage_layers) {
      fail(ErrorCode::kInvalidArgument,
           "{}: [[stage]] tables contradict {}: say it in the tables alone", wanted.source,
           wanted.tensor ? "tensor" : "stage_layers");
    }
    if (wanted.pipeline && *wanted.pipeline != static_cast<int>(wanted.stages.size())) {
      fail(ErrorCode::kInvalidArgument, "{}: pipeline is {}, but there are {} [[stage]] tables",
           wanted.source, *wanted.pipeline, wanted.stages.size());
    }
    return {wanted.stages};
  }
  size_t stages = wanted.pipeline ? static_cast<size_t>(*wanted.pipeline) : 1;
  if (!wanted.pipeline && wanted.stage_layers) stages = wanted.stage_layers->size();
  if (!wanted.pipeline && wanted.tensor && wanted.tensor->size() > 1) {
    stages = wanted.tensor->size();
  }
  if (wanted.stage_layers && wanted.stage_layers->size() != stages) {
    fail(ErrorCode::kInvalidArgument, "{}: stage_layers has {} numbers for {} stages",
         wanted.source, wanted.stage_layers->size(), stages);
  }
  if (wanted.tensor && wanted.tensor->size() > 1 && wanted.tensor->size() != stages) {
    fail(ErrorCode::kInvalidArgument, "{}: tensor has {} numbers for {} stages", wanted.source,
         wanted.tensor->size(), stages);
  }
  LayoutSpec spec;
  for (size_t i = 0; i < stages; ++i) {
    StageSpec stage;
    if (wanted.tensor) stage.tensor = (*wanted.tensor)[wanted.tensor->size() > 1 ? i : 0];
    if (wanted.stage_layers) stage.layers = (*wanted.stage_layers)[i];
    spec.stages.push_back(stage);
  }
  return spec;
}

}  // namespace

LayoutSpec parse_layout(const std::string& text_or_path) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(text_or_path, ignored)) {
    return to_spec(read_file(text_or_path));
  }
  if (text_or_path.find('=') != std::string::npos) return to_spec(read_inline(text_or_path));
  fail(ErrorCode::kInvalidArgument,
       "--layout: \"{}\" is neither a TOML file nor of the form tensor=2,pipeline=2", text_or_path);
}

}  // namespace trireme
