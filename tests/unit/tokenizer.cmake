find_package(ZLIB REQUIRED)  # the fixtures are gzipped
foreach(part formats parity pieces points)
  trireme_test(tokenizer_${part}_test SOURCES tokenizer_${part}_test.cc
    DEPENDS trireme_tokenizer ZLIB::ZLIB nlohmann_json::nlohmann_json TIMEOUT 180 LABELS unit)
endforeach()
trireme_test(tokenizer_test SOURCES tokenizer_test.cc tokenizer_file_test.cc
  DEPENDS trireme_tokenizer ZLIB::ZLIB nlohmann_json::nlohmann_json TIMEOUT 60 LABELS unit)
# Not a test: for tests/fixtures/check_tokenizers.py.
add_executable(tokenizer_ids tokenizer_ids.cc)
target_link_libraries(tokenizer_ids PRIVATE trireme_tokenizer ZLIB::ZLIB)
