// Layouts as text: both notations, every mistake, and the files of cluster_configs/.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
#include "parallel/layout.h"

namespace trireme {
namespace {

std::string text_of(const LayoutSpec& spec) {
  std::string text;
  for (const StageSpec& stage : spec.stages) {
    text += fmt::format("[{}x{}]", stage.tensor, stage.layers);
  }
  return text;
}

class TomlFile {
 public:
  explicit TomlFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("trireme-layout-{}.toml", getpid())) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TomlFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::string parsed_toml(const std::string& text) {
  return text_of(parse_layout(TomlFile(text).path()));
}

std::string refusal(const std::string& text_or_path) {
  try {
    parse_layout(text_or_path);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text_or_path;
  return "";
}

void expect_refusal(const std::string& text, const std::string& part) {
  const std::string message = refusal(text);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

void expect_toml_refusal(const std::string& text, const std::string& part) {
  expect_refusal(TomlFile(text).path(), part);
}

TEST(ParseLayout, Inline) {
  EXPECT_EQ(text_of(parse_layout("tensor=2")), "[2x0]");
  EXPECT_EQ(text_of(parse_layout("tensor=2,pipeline=2")), "[2x0][2x0]");
  EXPECT_EQ(text_of(parse_layout("pipeline=3")), "[1x0][1x0][1x0]");
  EXPECT_EQ(text_of(parse_layout("tensor=2,pipeline=2,stage_layers=16+14")), "[2x16][2x14]");
  EXPECT_EQ(text_of(parse_layout("stage_layers=16+14")), "[1x16][1x14]");
  EXPECT_EQ(text_of(parse_layout("tensor=2+1")), "[2x0][1x0]");
  EXPECT_EQ(text_of(parse_layout("pipeline=2,stage_layers=auto")), "[1x0][1x0]");
}

TEST(ParseLayout, InlineMistakes) {
  expect_refusal("", "neither a TOML file");
  expect_refusal("no/such/file.toml", "no/such/file.toml");
  expect_refusal("tensr=2", "unknown key \"tensr\"");
  expect_refusal("tensor=0", "tensor is 0");
  expect_refusal("tensor=-2", "tensor is -2");
  expect_refusal("tensor=2x", "tensor=2x is no whole number");
  expect_refusal("tensor=", "no whole number");
  expect_refusal("tensor=1.5", "no whole number");
  expect_refusal("tensor=99999", "tensor is 99999");
  expect_refusal("tensor=99999999999999999999999", "no whole number");
  expect_refusal("tensor=2,,pipeline=2", "\"\" is not of the form");
  expect_refusal("tensor=2,pipeline", "\"pipeline\" is not of the form");
  expect_refusal("tensor=2,tensor=3", "tensor is given twice");
  expect_refusal("pipeline=2+2", "pipeline is one number");
  expect_refusal("pipeline=3,stage_layers=16+14", "2 numbers for 3 stages");
  expect_refusal("tensor=2+1,pipeline=3", "2 numbers for 3 stages");
  expect_refusal("stage_layers=16+", "no whole number");
  expect_refusal("stage_layers=auto+2", "no whole number");
  expect_refusal("tensor=auto", "no whole number");
  expect_refusal("stage_layers=auto,stage_layers=16", "stage_layers is given twice");
  expect_refusal("stage_layers=16,stage_layers=auto", "stage_layers is given twice");
  expect_refusal("stage_layers=auto,stage_layers=auto", "stage_layers is given twice");
}

TEST(ParseLayout, Toml) {
  EXPECT_EQ(parsed_toml("tensor = 2\npipeline = 2\nstage_layers = [16, 14]\n"), "[2x16][2x14]");
  EXPECT_EQ(parsed_toml("tensor = 4"), "[4x0]");
  EXPECT_EQ(parsed_toml("pipeline = 2\nstage_layers = \"auto\""), "[1x0][1x0]");
  EXPECT_EQ(parsed_toml(""), "[1x0]");
  EXPECT_EQ(parsed_toml("[[stage]]\ntensor = 2\nlayers = 16\n[[stage]]\ntensor = 1\n"),
            "[2x16][1x0]");
  EXPECT_EQ(parsed_toml("pipeline = 1\n[[stage]]\n"), "[1x0]");
}

TEST(ParseLayout, TomlMistakes) {
  expect_toml_refusal("tensor = 2\ntensr = 3\n", "unknown key \"tensr\"");
  expect_toml_refusal("tensor = \"2\"", "tensor is no whole number");
  expect_toml_refusal("tensor = 2.0", "tensor is no whole number");
  expect_toml_refusal("pipeline = 0", "pipeline is 0");
  expect_toml_refusal("stage_layers = 3", "stage_layers is no list");
  expect_toml_refusal("stage_layers = \"even\"", "\"even\": neither \"auto\" nor a list");
  expect_toml_refusal("stage_layers = []", "stage_layers is no list");
  expect_toml_refusal("stage_layers = [1, \"a\"]", "stage_layers is no whole number");
  expect_toml_refusal("pipeline = 2\nstage_layers = [1]", "1 numbers for 2 stages");
  expect_toml_refusal("stage = 3", "stage is no list");
  expect_toml_refusal("stage = [1, 2]", "stage is no list");
  expect_toml_refusal("[[stage]]\nrank = 1", "unknown key \"stage.rank\"");
  expect_toml_refusal("[[stage]]\ntensor = -1", "stage.tensor is -1");
  expect_toml_refusal("tensor = 2\n[[stage]]\ntensor = 2", "contradict tensor");
  expect_toml_refusal("pipeline = 2\n[[stage]]\ntensor = 2", "there are 1 [[stage]] tables");
  expect_toml_refusal("tensor = \n", ".toml:1: ");
  expect_toml_refusal("\xff\xfe", ".toml:1: ");
}

TEST(ParseLayout, GarbageIsRefusedOrParsed) {
  std::mt19937 random(4);
  const std::string pieces[] = {"tensor", "pipeline", "stage_layers", "=",      "2", "[",
                                "]",      "\n",       "[[stage]]",    "layers", ",", "+",
                                "-",      "\"",       "999999999999", "#"};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = static_cast<int>(random() % 12); i > 0; --i) {
      text += pieces[random() % std::size(pieces)];
    }
    for (const std::string& source : {text, TomlFile(text).path()}) {
      TomlFile file(text);
      try {
        EXPECT_LE(parse_layout(source).stages.size(), 4096u);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      }
    }
  }
}

TEST(ClusterConfigs, EveryFileParses) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TRIREME_CLUSTER_CONFIGS)) {
    if (entry.path().extension() != ".toml") continue;
    ++files;
    EXPECT_GE(parse_layout(entry.path().string()).world(), 1) << entry.path();
  }
  EXPECT_GE(files, 5);
}

}  // namespace
}  // namespace trireme
