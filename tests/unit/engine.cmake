trireme_test(sampler_test SOURCES sampler_test.cc sampler_host_place.cc DEPENDS trireme_sampler
             TIMEOUT 60)
if(TRIREME_HAVE_CUDA)  # the same body, logits on a GPU: launch/test --gpu
  add_executable(sampler_gpu_test sampler_gpu_test.cc sampler_test.cc)
  target_link_libraries(sampler_gpu_test PRIVATE trireme_sampler trireme_kernels GTest::gtest)
  add_dependencies(gpu_tests sampler_gpu_test trireme_cuda)
  add_test(NAME sampler_gpu_test COMMAND sampler_gpu_test)
  set_tests_properties(sampler_gpu_test PROPERTIES TIMEOUT 120 LABELS gpu SKIP_RETURN_CODE 77
    RESOURCE_LOCK gpu ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)
endif()
trireme_library(trireme_test_engine SOURCES engine_world.cc DEPENDS trireme_engine)
target_compile_definitions(trireme_test_engine PRIVATE
  TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
trireme_test(engine_test SOURCES engine_test.cc DEPENDS trireme_test_engine trireme_test_model
             TIMEOUT 240 LABELS threads)
foreach(part equality families window)
  trireme_test(engine_${part}_test SOURCES engine_${part}_test.cc DEPENDS trireme_test_engine
               TIMEOUT 240 LABELS threads)
endforeach()
trireme_test(instance_test SOURCES instance_test.cc DEPENDS trireme_test_engine TIMEOUT 240)
trireme_test(instance_dtypes_test SOURCES instance_dtypes_test.cc
             DEPENDS trireme_engine trireme_test_model TIMEOUT 60)
trireme_test(instance_needs_test SOURCES instance_needs_test.cc
             DEPENDS trireme_engine trireme_test_model TIMEOUT 60)
trireme_test(warm_up_test SOURCES warm_up_test.cc DEPENDS trireme_test_engine TIMEOUT 120)
trireme_test(plan_hash_test SOURCES plan_hash_test.cc DEPENDS trireme_engine TIMEOUT 30)
trireme_test(worker_test SOURCES worker_test.cc DEPENDS trireme_engine TIMEOUT 30)
trireme_test(trace_test SOURCES trace_test.cc DEPENDS trireme_trace nlohmann_json::nlohmann_json
             TIMEOUT 30)
trireme_test(engine_trace_test SOURCES engine_trace_test.cc
             DEPENDS trireme_test_engine trireme_trace nlohmann_json::nlohmann_json TIMEOUT 240
             LABELS threads)
