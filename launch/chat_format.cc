#include "launch/chat_format.h"

namespace trireme {
namespace {

std::string chat_ml(const std::vector<ChatMessage>& messages) {
  std::string prompt;
  for (const auto& message : messages) {
    prompt += "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n";
  }
  return prompt + "<|im_start|>assistant\n";
}

std::string llama3(const std::vector<ChatMessage>& messages) {
  const auto header = [](const std::string& role) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
  };
  std::string prompt;
  for (const auto& message : messages) {
    prompt += header(message.role) + message.content + "<|eot_id|>";
  }
  return prompt + header("assistant");
}

// Each user turn is wrapped in [INST]; a system message goes inside the first one.
std::string llama2(const std::vector<ChatMessage>& messages) {
  std::string prompt, system;
  for (const auto& message : messages) {
    if (message.role == "system") {
      system = "<<SYS>>\n" + message.content + "\n<</SYS>>\n\n";
    } else if (message.role == "user") {
      prompt += "[INST] " + system + message.content + " [/INST]";
      system.clear();
    } else {
      prompt += " " + message.content + " </s><s>";
    }
  }
  return prompt;
}

std::string plain(const std::vector<ChatMessage>& messages) {
  std::string prompt;
  for (const auto& message : messages) {
    prompt += (message.role == "assistant" ? "Assistant: "
               : message.role == "user"    ? "User: "
                                           : "") +
              message.content + "\n";
  }
  return prompt + "Assistant:";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

ChatFormat detect_chat_format(const std::string& chat_template) {
  if (contains(chat_template, "<|im_start|>")) return ChatFormat::kChatMl;
  if (contains(chat_template, "<|start_header_id|>")) return ChatFormat::kLlama3;
  if (contains(chat_template, "[INST]")) return ChatFormat::kLlama2;
  return ChatFormat::kPlain;
}

std::optional<std::string> default_system(ChatFormat format, const std::string& chat_template) {
  if (format != ChatFormat::kChatMl) return std::nullopt;
  // Templates write the default either with a real newline or with the two characters \n.
  for (const std::string marker : {"<|im_start|>system\n", "<|im_start|>system\\n"}) {
    const size_t begin = chat_template.find(marker);
    if (begin == std::string::npos) continue;
    const size_t text = begin + marker.size();
    const size_t end = chat_template.find("<|im_end|>", text);
    if (end == std::string::npos) continue;
    std::string system = chat_template.substr(text, end - text);
    // A template expression, not a text.
    if (system.empty() || system.find_first_of("'\"{}") != std::string::npos) continue;
    return system;
  }
  return std::nullopt;
}

std::string format_chat(ChatFormat format, const std::vector<ChatMessage>& messages) {
  switch (format) {
    case ChatFormat::kChatMl: return chat_ml(messages);
    case ChatFormat::kLlama3: return llama3(messages);
    case ChatFormat::kLlama2: return llama2(messages);
    case ChatFormat::kPlain: return plain(messages);
  }
  return {};
}

std::vector<std::string> chat_stops(ChatFormat format) {
  switch (format) {
    case ChatFormat::kChatMl: return {"<|im_end|>"};
    case ChatFormat::kLlama3: return {"<|eot_id|>"};
    case ChatFormat::kLlama2: return {};
    case ChatFormat::kPlain: return {"\nUser:"};
  }
  return {};
}

}  // namespace trireme
