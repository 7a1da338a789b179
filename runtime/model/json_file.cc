#include "runtime/model/json_file.h"

#include <fmt/format.h>

#include <cmath>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"

namespace trireme {
namespace {

// Follows the parser and refuses depth and duplicate keys before they become memory.
class Guard {
 public:
  explicit Guard(const std::string& what) : what_(what) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxJsonDepth) {
        fail(ErrorCode::kDataLoss, "{}: JSON is nested deeper than {} levels", what_,
             kMaxJsonDepth);
      }
      if (event == Event::object_start) keys_of(depth + 1).clear();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_of(depth).insert(key).second) {
        fail(ErrorCode::kDataLoss, "{}: JSON key '{}' occurs twice in one object", what_,
             printable(key));
      }
    }
    return true;
  }

 private:
  std::unordered_set<std::string>& keys_of(int depth) {
    if (keys_.size() <= static_cast<size_t>(depth)) keys_.resize(static_cast<size_t>(depth) + 1);
    return keys_[static_cast<size_t>(depth)];
  }

  const std::string& what_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& what) {
  auto guard = std::make_shared<Guard>(what);  // the parser copies its callback
  try {
    return Json::parse(
        text.begin(), text.end(),
        [guard](int depth, Json::parse_event_t event, Json& parsed) {
          return (*guard)(depth, event, parsed);
        },
        true);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kDataLoss, "{}: not valid JSON: {}", what, printable(error.what()));
  }
}

Json read_json_file(const std::string& path, size_t max_bytes) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() > max_bytes) {
    fail(ErrorCode::kDataLoss, "{}: {} bytes of JSON, more than the limit of {}", path,
         bytes.size(), max_bytes);
  }
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

JsonFields::JsonFields(const Json& object, std::string what)
    : object_(object), what_(std::move(what)) {
  if (!object_.is_object()) fail(ErrorCode::kDataLoss, "{}: not a JSON object", what_);
}

const Json* JsonFields::find(const char* key) const {
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

std::optional<int64_t> JsonFields::integer(const char* key, int64_t low, int64_t high) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is not an integer", what_, key);
  }
  const bool huge = value->is_number_unsigned() &&
                    value->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  const auto number = value->get<int64_t>();
  if (huge || number < low || number > high) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is {}, outside [{}, {}]", what_, key, value->dump(),
         low, high);
  }
  return number;
}

std::optional<double> JsonFields::number(const char* key, double low, double high) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is not a number", what_, key);
  }
  const auto number = value->get<double>();
  if (!(number >= low && number <= high)) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is {}, outside [{}, {}]", what_, key, number, low,
         high);
  }
  return number;
}

std::optional<bool> JsonFields::boolean(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is not true or false", what_, key);
  }
  return value->get<bool>();
}

std::optional<std::string> JsonFields::string(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(ErrorCode::kDataLoss, "{}: field '{}' is not a string", what_, key);
  }
  return value->get<std::string>();
}

int64_t JsonFields::required_integer(const char* key, int64_t low, int64_t high) const {
  const auto value = integer(key, low, high);
  if (!value) fail(ErrorCode::kDataLoss, "{}: field '{}' is missing", what_, key);
  return *value;
}

double JsonFields::required_number(const char* key, double low, double high) const {
  const auto value = number(key, low, high);
  if (!value) fail(ErrorCode::kDataLoss, "{}: field '{}' is missing", what_, key);
  return *value;
}

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 200;
  std::string out;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out.push_back(c);
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  return text.size() > kLongest ? out + "..." : out;
}

}  // namespace trireme
