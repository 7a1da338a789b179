// Turns a conversation into the prompt a model was trained on (docs/adr/0005).
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace trireme {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

enum class ChatFormat { kPlain, kChatMl, kLlama3, kLlama2 };

// By the markers in a model's Jinja template; kPlain where none is known.
ChatFormat detect_chat_format(const std::string& chat_template);

// The system message that the template itself supplies when a conversation brings none (the text
// between the format's system markers in the template); nullopt if it has none.
std::optional<std::string> default_system(ChatFormat format, const std::string& chat_template);

// The prompt up to where the assistant's next answer begins. BOS is the tokenizer's business,
// except that Llama 3 prompts begin with it only through the tokenizer.
std::string format_chat(ChatFormat format, const std::vector<ChatMessage>& messages);

// Strings that end an answer in this format, beside the model's EOS.
std::vector<std::string> chat_stops(ChatFormat format);

}  // namespace trireme
