// A directory: config.json up to the first NUL, then model.safetensors. The table by itself, and
// the checkpoint as it is checked before loading, packed matrices unpacked.
#include "runtime/model/safetensors.h"

#include "runtime/model/inspect.h"
#include "runtime/model/weight_source.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/fuzz_tensors.h"
#include "tests/support/model_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  if (end == std::string_view::npos) return 0;
  const std::string_view config = input.substr(0, end), weights = input.substr(end + 1);
  bool reads = false;
  fuzz::run([&] {
    const fuzz::Copy copy(weights);
    for (const SafeTensor& tensor : parse_safetensors(copy.bytes(), "model.safetensors")) {
      fuzz::expect_within(tensor.bytes, copy.bytes());
    }
    reads = true;
  });
  if (!reads) return 0;
  static const TempDirectory folder;
  folder.write("config.json", config);
  folder.write("model.safetensors", weights);
  fuzz::run([&] { inspect_model(folder.path()); });
  return fuzz::run([&] {
    const auto source = open_model(folder.path());
    fuzz::read_all(*source);
  });
}
