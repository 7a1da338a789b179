trireme_library(trireme_test_model SOURCES model_fixture.cc model_runner.cc smollm2.cc
                DEPENDS trireme_model trireme_test_communicator nlohmann_json::nlohmann_json
                        GTest::gtest)
target_compile_definitions(trireme_test_model PRIVATE
  TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
