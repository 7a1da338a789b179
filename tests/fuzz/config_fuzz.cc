// config.json up to the first NUL, then generation_config.json if there is more.
#include "runtime/model/hf_config.h"
#include "runtime/model/json_file.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  return fuzz::run([&] {
    const Json config = parse_json(input.substr(0, end), "config.json");
    Json generation;
    if (end < input.size()) {
      generation = parse_json(input.substr(end + 1), "generation_config.json");
    }
    const Json* second = end < input.size() ? &generation : nullptr;
    for (const int context : {0, 100, 1 << 20}) {
      fuzz::run([&] {
        const auto read = parse_hugging_face_config(config, second, "config.json", context);
        // What every rank computes with: as many layers as are said, and heads that divide.
        const ModelConfig& model = read.model;
        if (model.layers.empty() || model.kv_heads <= 0 || model.q_heads % model.kv_heads != 0) {
          std::abort();
        }
        model.shape(1, 1);
      });
    }
  });
}
