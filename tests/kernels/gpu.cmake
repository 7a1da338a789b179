# The kernel tests that need a GPU; skipped, saying so, where there is none.
if(TRIREME_HAVE_CUDA)
  set(no_gpu "no GPU|no CUDA-capable device|driver version is insufficient")
  foreach(area IN LISTS areas)
    add_test(NAME gpu_${area}_test COMMAND kernels_${area}_test)
    set_tests_properties(gpu_${area}_test PROPERTIES TIMEOUT 120 LABELS gpu
      SKIP_REGULAR_EXPRESSION "${no_gpu}" RESOURCE_LOCK gpu ENVIRONMENT
      "GTEST_FILTER=Gpu/*;TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme")
    add_dependencies(gpu_tests kernels_${area}_test trireme_cuda)
  endforeach()

  # Several ranks on one GPU.
  add_executable(gpu_peer_sums_test gpu_peer_sums_test.cc)
  target_link_libraries(gpu_peer_sums_test PRIVATE trireme_kernels GTest::gtest)
  target_include_directories(gpu_peer_sums_test SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  add_dependencies(gpu_tests gpu_peer_sums_test trireme_cuda)
  add_test(NAME gpu_peer_sums_test COMMAND gpu_peer_sums_test)
  set_tests_properties(gpu_peer_sums_test PROPERTIES TIMEOUT 120 LABELS gpu SKIP_RETURN_CODE 77
    RESOURCE_LOCK gpu ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)

  add_executable(gpu_streams_test gpu_streams_test.cc)
  target_link_libraries(gpu_streams_test PRIVATE trireme_kernels GTest::gtest)
  add_dependencies(gpu_tests gpu_streams_test trireme_cuda)
  add_test(NAME gpu_streams_test COMMAND gpu_streams_test)
  set_tests_properties(gpu_streams_test PROPERTIES TIMEOUT 120 LABELS gpu SKIP_RETURN_CODE 77
    RESOURCE_LOCK gpu ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)

  # Single kernels, below the backend: programs of the modules' own objects, for each element that
  # they know of.
  foreach(test gemm decode prefill sampling cuts gemm_f16 decode_f16 prefill_f16)
    set(element bf16)
    string(REPLACE "_f16" "" area ${test})
    if(NOT area STREQUAL test)
      set(element f16)
    endif()
    add_executable(cuda_${test}_test cuda_${area}_test.cu $<TARGET_OBJECTS:trireme_cuda_${element}>
                   $<TARGET_OBJECTS:trireme_cuda_common>)
    target_link_libraries(cuda_${test}_test PRIVATE trireme_options trireme_kernels
                          CUDA::cudart_static CUDA::cublasLt)
    target_compile_definitions(cuda_${test}_test PRIVATE
                               $<$<STREQUAL:${element},f16>:TRIREME_CUDA_F16>)
    target_compile_options(cuda_${test}_test PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr>)
    add_dependencies(gpu_tests cuda_${test}_test)
    add_test(NAME cuda_${test}_test COMMAND cuda_${test}_test)
    set_tests_properties(cuda_${test}_test PROPERTIES TIMEOUT 180 LABELS gpu SKIP_RETURN_CODE 77
      SKIP_REGULAR_EXPRESSION "${no_gpu}" RESOURCE_LOCK gpu)
  endforeach()
endif()
