// GGUF: the table, every value read as every type, the configuration, the model's tensors as they
// are checked before loading, and the tokenizer.
#include "runtime/instance_tokenizer.h"
#include "runtime/model/gguf.h"
#include "runtime/model/gguf_config.h"
#include "runtime/model/inspect.h"
#include "runtime/model/weight_source.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/fuzz_tensors.h"
#include "tests/support/model_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  bool reads = false;
  fuzz::run([&] {
    const fuzz::Copy copy(input);
    const GgufFile file(copy.bytes(), "model.gguf");
    reads = true;
    for (const std::string& key : file.keys()) {
      fuzz::expect_within(file.find(key)->bytes, copy.bytes());
      fuzz::run([&] { file.get_int(key); });
      fuzz::run([&] { file.get_number(key); });
      fuzz::run([&] { file.get_bool(key); });
      fuzz::run([&] { file.get_string(key); });
      fuzz::run([&] { file.get_string_array(key); });
      fuzz::run([&] { file.get_int_array(key); });
      fuzz::run([&] { file.get_float_array(key); });
    }
    for (const GgufTensor& tensor : file.tensors()) {
      fuzz::expect_within(tensor.bytes, copy.bytes());
      if (file.find_tensor(tensor.name) != &tensor) std::abort();
    }
    parse_gguf_config(file);
  });
  if (!reads) return 0;
  static const TempDirectory folder;
  const std::string path = folder.write("model.gguf", input);
  fuzz::run([&] { inspect_model(path); });
  fuzz::run([&] { open_tokenizer(path, 1 << 20); });
  return fuzz::run([&] {
    const auto source = open_model(path);
    for (const SourceTensor& tensor : source->tensors()) {
      const auto bytes = static_cast<size_t>(row_bytes(tensor.format, tensor.cols));
      for (int64_t row = 0; row < tensor.rows; ++row) {
        fuzz::expect_within({tensor.row(row), bytes},
                            source->gguf()->find_tensor(tensor.origin)->bytes);
      }
    }
    fuzz::read_all(*source);
  });
}
