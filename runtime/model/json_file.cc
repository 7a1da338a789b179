#include "runtime/model/json_file.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"

namespace trireme {
namespace {

// A first pass that keeps nothing but the keys of the open objects: depth and duplicates are
// refused before a tree is built. (The library's callback parser would do, if it were not
// quadratic.)
class Guard : public nlohmann::json_sax<Json> {
 public:
  explicit Guard(const std::string& what) : what_(what) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) {
      fail(ErrorCode::kDataLoss, "{}: JSON key '{}' occurs twice in one object", what_,
           printable(name));
    }
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    fail(ErrorCode::kDataLoss, "{}: not valid JSON: {}", what_, printable(error.what()));
  }

 private:
  bool open() {
    if (keys_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      fail(ErrorCode::kDataLoss, "{}: JSON is nested deeper than {} levels", what_, kMaxJsonDepth);
    }
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& what_;
  std::vector<std::unordered_set<std::string>> keys_;  // of each object or array that is open
};

}  // namespace

Json parse_json(std::string_view text, const std::string& what) {
  Guard guard(what);
  Json::sax_parse(text.begin(), text.end(), &guard);
  try {
    return Json::parse(text.begin(), text.end());
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
