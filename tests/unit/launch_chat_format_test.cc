#include <gtest/gtest.h>

#include "launch/chat_format.h"

namespace trireme {
namespace {

TEST(ChatFormat, IsFoundByTheTemplatesMarkers) {
  EXPECT_EQ(detect_chat_format("{{'<|im_start|>' + message['role']}}"), ChatFormat::kChatMl);
  EXPECT_EQ(detect_chat_format("{{'<|start_header_id|>'}}"), ChatFormat::kLlama3);
  EXPECT_EQ(detect_chat_format("{{'[INST] ' + content}}"), ChatFormat::kLlama2);
  EXPECT_EQ(detect_chat_format(""), ChatFormat::kPlain);
}

TEST(ChatFormat, ChatMlWrapsEveryMessage) {
  EXPECT_EQ(format_chat(ChatFormat::kChatMl,
                        {{"system", "s"}, {"user", "u"}, {"assistant", "a"}, {"user", "v"}}),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
            "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nv<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST(ChatFormat, Llama3AndLlama2) {
  EXPECT_EQ(format_chat(ChatFormat::kLlama3, {{"user", "u"}}),
            "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(format_chat(ChatFormat::kLlama2,
                        {{"system", "s"}, {"user", "u"}, {"assistant", "a"}, {"user", "v"}}),
            "[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] v [/INST]");
}

TEST(ChatFormat, TheTemplatesOwnSystemMessageIsTheDefault) {
  const std::string real =
      "{% if x %}{{ '<|im_start|>system\nYou are kind<|im_end|>\n' }}{% endif %}";
  const std::string escaped = "{{ '<|im_start|>system\\nYou are kind<|im_end|>\\n' }}";
  EXPECT_EQ(default_system(ChatFormat::kChatMl, real), "You are kind");
  EXPECT_EQ(default_system(ChatFormat::kChatMl, escaped), "You are kind");
  EXPECT_EQ(default_system(ChatFormat::kChatMl,
                           "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>' }}"),
            std::nullopt);
  EXPECT_EQ(default_system(ChatFormat::kLlama3, real), std::nullopt);
}

}  // namespace
}  // namespace trireme
