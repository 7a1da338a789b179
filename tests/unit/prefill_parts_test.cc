#include "runtime/model/prefill_parts.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/errors.h"

namespace trireme {
namespace {

TEST(PrefillParts, NothingIsCutUntilThatIsDecided) {
  const PrefillParts open;
  EXPECT_FALSE(open.decided());
  for (const int64_t tokens : {0, 1, 2, 4096}) EXPECT_EQ(open.cut(tokens), 0);
  EXPECT_TRUE(open.describe().empty());
}

TEST(PrefillParts, EachSizeTakesTheLastChoiceBelowIt) {
  const PrefillParts parts({{1024, 4, 0.0, 0.0}, {2048, 0, 0.0, 0.0}, {4096, 3, 3e-3, 2e-3}});
  EXPECT_TRUE(parts.decided());
  EXPECT_EQ(parts.cut(1023), 0);
  EXPECT_EQ(parts.cut(1024), 512);
  EXPECT_EQ(parts.cut(2047), 1024);  // 1023 and a half, at a tile's end
  EXPECT_EQ(parts.cut(2048), 0);
  EXPECT_EQ(parts.cut(4095), 0);
  EXPECT_EQ(parts.cut(4096), 1536);
  EXPECT_EQ(parts.cut(5000), 1920);  // 1875, at a tile's end
  ASSERT_EQ(parts.describe().size(), 3u);
  EXPECT_EQ(parts.describe()[1], "prefill from 2048 tokens on: whole");
  EXPECT_EQ(parts.describe()[2],
            "prefill from 4096 tokens on: cut at 3/8 (a few layers: whole 3.000 ms, best cut "
            "2.000 ms)");
}

TEST(PrefillParts, NeitherPartIsEmpty) {
  for (int eighths = 1; eighths < 8; ++eighths) {
    const PrefillParts parts({{0, eighths, 0.0, 0.0}});
    EXPECT_EQ(parts.cut(0), 0);
    EXPECT_EQ(parts.cut(1), 0);
    for (int64_t tokens = 2; tokens < 3000; ++tokens) {
      const int64_t cut = parts.cut(tokens);
      ASSERT_GT(cut, 0) << tokens;
      ASSERT_LT(cut, tokens) << tokens;
    }
  }
}

TEST(PrefillParts, TheEnvironmentDecides) {
  const auto with = [](const char* value) {
    setenv("TRIREME_PREFILL_PARTS", value, 1);
    return PrefillParts::from_environment();
  };
  EXPECT_FALSE(with("").decided());
  EXPECT_FALSE(with("auto").decided());
  EXPECT_TRUE(with("off").decided());
  EXPECT_EQ(with("off").cut(4096), 0);
  EXPECT_EQ(with("on").cut(4096), 2048);
  EXPECT_EQ(with("on").cut(2), 1);
  EXPECT_EQ(error_of([&] { with("2"); }).code(), ErrorCode::kInvalidArgument);
  unsetenv("TRIREME_PREFILL_PARTS");
  EXPECT_FALSE(PrefillParts::from_environment().decided());
}

}  // namespace
}  // namespace trireme
