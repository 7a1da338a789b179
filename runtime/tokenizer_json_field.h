// A value of tokenizer.json together with its place, so that every error names file and field.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "runtime/tokenizer.h"

namespace trireme {

class JsonField {
 public:
  JsonField(const nlohmann::json& value, const std::string& file, std::string path)
      : value_(&value), file_(&file), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }

  bool has(const char* key) const {
    return value_->is_object() && value_->contains(key) && !value_->at(key).is_null();
  }
  JsonField operator[](const char* key) const {
    const std::string path = path_.empty() ? key : path_ + "." + key;
    if (!has(key)) lose("{} is missing", path);
    return {value_->at(key), *file_, path};
  }
  JsonField operator[](size_t index) const {
    return {value_->at(index), *file_, fmt::format("{}[{}]", path_, index)};
  }

  const JsonField& object() const { return expect(value_->is_object(), "an object"); }
  const JsonField& array() const { return expect(value_->is_array(), "a list"); }
  size_t size() const { return value_->size(); }
  const std::string& string() const {
    expect(value_->is_string(), "a string");
    return value_->get_ref<const std::string&>();
  }
  // A token id.
  int32_t id() const {
    expect(value_->is_number_unsigned() && value_->get<uint64_t>() <= INT32_MAX, "a token id");
    return value_->get<int32_t>();
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const JsonField field = (*this)[key];
    field.expect(field.value_->is_boolean(), "true or false");
    return field.value_->get<bool>();
  }
  std::string string(const char* key, const char* otherwise) const {
    return has(key) ? (*this)[key].string() : otherwise;
  }
  double number() const {
    expect(value_->is_number(), "a number");
    return value_->get<double>();
  }
  // A small count.
  int32_t count(const char* key, int32_t otherwise) const {
    if (!has(key)) return otherwise;
    const JsonField field = (*this)[key];
    field.expect(field.value_->is_number_unsigned() && field.value_->get<uint64_t>() <= 1024,
                 "a number up to 1024");
    return field.value_->get<int32_t>();
  }

  template <typename... Args>
  [[noreturn]] void lose(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::kDataLoss, "{}: {}", *file_, fmt::format(format, std::forward<Args>(args)...));
  }
  // `known`: what is, as a list; "" where that says nothing.
  [[noreturn]] void unsupported(const std::string& what, const char* known = "") const {
    fail(ErrorCode::kUnimplemented, "{}: {} {} is not supported{}{}", *file_, path_, what,
         *known == '\0' ? "" : "; known: ", known);
  }

 private:
  const JsonField& expect(bool holds, const char* what) const {
    if (!holds) lose("{} is not {}", path_, what);
    return *this;
  }

  const nlohmann::json* value_;
  const std::string* file_;
  std::string path_;
};

// The parts of tokenizer.json that say what happens around the model. Each fills its fields of
// `spec`; `root` is the whole file.
void read_normalizer(const JsonField& root, TokenizerSpec& spec);
void read_pre_tokenizer(const JsonField& root, TokenizerSpec& spec);
void read_post_processor(const JsonField& root, TokenizerSpec& spec);
void read_decoder(const JsonField& root, TokenizerSpec& spec);

}  // namespace trireme
