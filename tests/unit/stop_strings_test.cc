#include "runtime/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace trireme {
namespace {

struct Outcome {
  std::string text;
  int match = -1;
  bool operator==(const Outcome&) const = default;
};

// What should come out, by looking at every prefix of the whole text.
Outcome reference(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int found = -1;
    for (size_t s = 0; s < stops.size(); ++s) {
      if (!text.substr(0, end).ends_with(stops[s])) continue;
      if (found < 0 || stops[s].size() > stops[found].size()) found = static_cast<int>(s);
    }
    if (found >= 0) return {text.substr(0, include ? end : end - stops[found].size()), found};
  }
  return {text, -1};
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeOne) {
  StopStrings stop({"END"}, false);
  std::string out;
  EXPECT_EQ(stop.push("the ", out), -1);
  EXPECT_EQ(out, "the ");
  EXPECT_EQ(stop.push("E", out), -1);
  EXPECT_EQ(out, "the ");
  EXPECT_EQ(stop.push("N", out), -1);
  EXPECT_EQ(out, "the ");
  EXPECT_EQ(stop.push("E", out), -1);  // ENE: only the last E may still begin one
  EXPECT_EQ(out, "the EN");
  EXPECT_EQ(stop.push("ND tail", out), 0);
  EXPECT_EQ(out, "the EN");
}

TEST(StopStrings, ReleasesWhatWasHeldWhenTheTextEnds) {
  StopStrings stop({"\n\n"}, false);
  std::string out;
  stop.push("a\n", out);
  EXPECT_EQ(out, "a");
  stop.finish(out);
  EXPECT_EQ(out, "a\n");
}

TEST(StopStrings, IncludedStringsAreNotHeldBack) {
  StopStrings stop({"END"}, true);
  std::string out;
  stop.push("xEN", out);
  EXPECT_EQ(out, "xEN");
  EXPECT_EQ(stop.push("Dy", out), 0);
  EXPECT_EQ(out, "xEND");
}

TEST(StopStrings, NeverCutsWithinACharacter) {
  StopStrings stop({"\u00e8"}, false);  // shares its first byte with \u00e9
  std::string out;
  stop.push("\u00e9", out);
  EXPECT_EQ(out, "\u00e9");
}

TEST(StopStrings, EqualsAPlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(1);
  const auto letters = [&](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  int matches = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::string text = letters(random() % 24);
    std::vector<std::string> stops;
    for (size_t s = 0; s < 1 + random() % 3; ++s) stops.push_back(letters(2 + random() % 5));
    const bool include = random() % 2 == 0;
    const Outcome expected = reference(text, stops, include);
    StopStrings matcher(stops, include);
    Outcome got;
    size_t at = 0;
    while (at < text.size() && got.match < 0) {
      const size_t size = std::min<size_t>(1 + random() % 4, text.size() - at);
      got.match = matcher.push(text.substr(at, size), got.text);
      at += size;
      // What is out can never be taken back.
      ASSERT_TRUE(expected.text.starts_with(got.text)) << text;
    }
    if (got.match < 0) matcher.finish(got.text);
    ASSERT_EQ(got.text, expected.text) << text;
    ASSERT_EQ(got.match < 0, expected.match < 0);
    if (got.match >= 0) {
      ++matches;
      ASSERT_EQ(stops[got.match], stops[expected.match]);
    }
  }
  EXPECT_GT(matches, 5000);
}

}  // namespace
}  // namespace trireme
