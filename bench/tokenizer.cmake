find_package(ZLIB REQUIRED)
add_executable(tokenizer_bench tokenizer_bench.cc)
target_compile_definitions(tokenizer_bench PRIVATE
  TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
target_link_libraries(tokenizer_bench PRIVATE trireme_tokenizer ZLIB::ZLIB)
