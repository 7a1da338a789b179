// JSON from files that nobody vouches for: bounded in size and depth, no duplicate keys, and typed
// fields whose errors name file and key.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

using Json = nlohmann::json;

inline constexpr int kMaxJsonDepth = 64;

// Parses `text`; `what` (a path) begins every message. Throws kDataLoss: not JSON, nested deeper
// than kMaxJsonDepth, or a key that occurs twice in one object.
Json parse_json(std::string_view text, const std::string& what);

// Reads a file of at most `max_bytes`. Throws kNotFound or kDataLoss.
Json read_json_file(const std::string& path, size_t max_bytes = size_t{256} << 20);

// A JSON object's fields. null counts as absent, as in Hugging Face's files.
class JsonFields {
 public:
  // `object` must outlive this. Throws kDataLoss if it is not an object.
  JsonFields(const Json& object, std::string what);

  bool has(const char* key) const { return find(key) != nullptr; }
  const Json* find(const char* key) const;                             // nullptr: absent or null
  bool names(const char* key) const { return object_.contains(key); }  // perhaps with null
  const std::string& what() const { return what_; }

  // Each throws kDataLoss if the field has another type or lies outside [low, high].
  std::optional<int64_t> integer(const char* key, int64_t low, int64_t high) const;
  std::optional<double> number(const char* key, double low, double high) const;
  std::optional<bool> boolean(const char* key) const;
  std::optional<std::string> string(const char* key) const;

  // As above; absent is an error.
  int64_t required_integer(const char* key, int64_t low, int64_t high) const;
  double required_number(const char* key, double low, double high) const;

 private:
  const Json& object_;
  std::string what_;
};

// Text from a file, made fit for a one-line message: unprintable bytes escaped, long names cut.
std::string printable(std::string_view text);

}  // namespace trireme
