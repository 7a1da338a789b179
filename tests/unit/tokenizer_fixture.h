// Reads the fixtures that tests/fixtures/make_tokenizer.py wrote.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/tokenizer.h"
#include "runtime/tokenizer_ranks.h"
#include "runtime/tokenizer_sentencepiece.h"
#include "tests/support/errors.h"

namespace trireme::test {

// The message is one line, and `part` stands in it.
inline void expect_error(const std::function<void()>& body, ErrorCode code,
                         const std::string& part) {
  const Error error = error_of(body);
  const std::string what = error.what();
  EXPECT_EQ(error.code(), code) << what;
  EXPECT_NE(what.find(part), std::string::npos) << what << " lacks " << part;
  EXPECT_EQ(what.find('\n'), std::string::npos) << what;
}

inline std::string read_gz(const std::string& name) {
  const std::string path = std::string(TRIREME_FIXTURES) + "/tokenizer/" + name + ".gz";
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) throw std::runtime_error("cannot open " + path);
  std::string text;
  char buffer[1 << 16];
  int count = 0;
  while ((count = gzread(file, buffer, sizeof buffer)) > 0) text.append(buffer, count);
  gzclose(file);
  if (count < 0) throw std::runtime_error("cannot read " + path);
  return text;
}

// A file that lives as long as this object, alone in its folder.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text, const std::string& name = "tokenizer.json") {
    static int count = 0;
    folder_ = std::filesystem::temp_directory_path() /
              ("trireme_tokenizer_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directory(folder_);
    path_ = folder_ / name;
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TemporaryFile() { std::filesystem::remove_all(folder_); }
  TemporaryFile(const TemporaryFile&) = delete;
  std::string path() const { return path_; }
  std::filesystem::path folder() const { return folder_; }

 private:
  std::filesystem::path folder_, path_;
};

// What make_tokenizer.py or make_tokenizer_pieces.py wrote of one text.
struct Expected {
  size_t count;
  uint32_t crc;
  std::vector<int32_t> ids;  // of some records only
};

inline TokenizerSpec spec_of_json(const std::string& json) {
  const TemporaryFile file(json);
  return read_tokenizer_json(file.path());
}

inline bool has_fixture(const std::string& name) {
  return std::filesystem::exists(std::string(TRIREME_FIXTURES) + "/tokenizer/" + name + ".gz");
}

// NAME.model is a SentencePiece file, tekken.json Mistral's, other NAME.json Hugging Face's.
inline TokenizerSpec fixture_spec(const std::string& name) {
  if (name == "tekken") {
    return read_tekken(TemporaryFile(read_gz("tekken.json"), "tekken.json").path());
  }
  if (!has_fixture(name + ".model")) return spec_of_json(read_gz(name + ".json"));
  return tokenizer_spec_of(read_sentencepiece(read_gz(name + ".model"), name), false, false);
}

inline Tokenizer fixture_tokenizer(const std::string& name) {
  return Tokenizer(fixture_spec(name));
}

inline std::vector<std::string> corpus() {
  const std::string raw = read_gz("corpus");
  std::vector<std::string> records;
  for (size_t at = 0; at < raw.size();) {
    const size_t line = raw.find('\n', at);
    const size_t length = std::stoul(raw.substr(at, line - at));
    records.push_back(raw.substr(line + 1, length));
    at = line + length + 2;
  }
  return records;
}

inline std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

inline std::vector<Expected> expected_ids(const std::string& name) {
  std::vector<Expected> out;
  for (const std::string& line : lines(read_gz(name + ".ids"))) {
    std::istringstream in(line);
    Expected expected{};
    in >> expected.count >> expected.crc;
    for (int32_t id; in >> id;) expected.ids.push_back(id);
    out.push_back(expected);
  }
  return out;
}

// The generator of make_tokenizer.py's random_ids().
class RandomIds {
 public:
  std::vector<int32_t> next(int32_t vocabulary, int32_t few) {
    std::vector<int32_t> ids(1 + draw(60));
    for (int32_t& id : ids) id = draw(draw(2) ? few : vocabulary);
    return ids;
  }

 private:
  int32_t draw(int32_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int32_t>((state_ >> 33) % static_cast<uint64_t>(n));
  }
  uint64_t state_ = 1;
};

inline uint32_t crc(std::span<const int32_t> ids) {
  return crc32(0, reinterpret_cast<const Bytef*>(ids.data()), ids.size_bytes());
}

inline uint32_t crc(const std::string& text) {
  return crc32(0, reinterpret_cast<const Bytef*>(text.data()), text.size());
}

}  // namespace trireme::test
