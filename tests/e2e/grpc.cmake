# Each layout of the soak takes 10 s here and TRIREME_SOAK_SECONDS=60 for the whole one.
trireme_test(soak_test SOURCES soak_test.cc
             DEPENDS trireme_test_engine trireme_coordinator trireme_client
             nlohmann_json::nlohmann_json TIMEOUT 300 LABELS e2e)
set_tests_properties(soak_test PROPERTIES ENVIRONMENT GTEST_FILTER=-Gpu/*)
if(TRIREME_HAVE_CUDA)
  add_test(NAME gpu_soak_test COMMAND soak_test)
  set_tests_properties(gpu_soak_test PROPERTIES TIMEOUT 300 LABELS gpu
    SKIP_REGULAR_EXPRESSION "no GPU|no CUDA-capable device|driver version is insufficient"
    RESOURCE_LOCK gpu ENVIRONMENT
    "GTEST_FILTER=Gpu/*;TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme")
  add_dependencies(gpu_tests soak_test trireme_cuda)
endif()
