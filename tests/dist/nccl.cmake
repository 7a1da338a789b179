# Needs GPUs; skipped, saying so, where there is none.
if(TARGET trireme_nccl)
  trireme_test(nccl_module_test SOURCES nccl_module_test.cc DEPENDS trireme_parallel TIMEOUT 60)
  add_dependencies(nccl_module_test trireme_nccl)
  set_tests_properties(nccl_module_test PROPERTIES ENVIRONMENT
    "TRIREME_MODULE_PATH=$<TARGET_FILE_DIR:trireme_nccl>")
  add_executable(nccl_mpi_test nccl_mpi_test.cc nccl_mpi_failure_test.cc)
  target_compile_options(nccl_mpi_test PRIVATE $<$<CONFIG:Release>:-O1>)
  target_link_libraries(nccl_mpi_test PRIVATE trireme_test_communicator trireme_parallel_mpi
                        GTest::gtest CUDA::cudart_static)
  add_dependencies(nccl_mpi_test trireme_nccl)
  foreach(ranks 2 4)
    add_test(NAME nccl_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks} $<TARGET_FILE:nccl_mpi_test>)
    set_tests_properties(nccl_mpi_test_${ranks} PROPERTIES TIMEOUT 120 LABELS "mpi;gpu"
      SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu ENVIRONMENT
      "TRIREME_MODULE_PATH=$<TARGET_FILE_DIR:trireme_nccl>")
  endforeach()

  # The sums' kernels themselves, below backend and NCCL: ranks may outnumber the GPUs.
  add_executable(peer_sum_mpi_test peer_sum_mpi_test.cu peer_world.cc
                 ${PROJECT_SOURCE_DIR}/parallel/nccl_peers.cc $<TARGET_OBJECTS:trireme_cuda>)
  target_include_directories(peer_sum_mpi_test SYSTEM PRIVATE ${NCCL_INCLUDE_DIR})
  target_link_libraries(peer_sum_mpi_test PRIVATE trireme_options trireme_kernels
                        trireme_parallel_mpi CUDA::cudart_static CUDA::cublasLt)
  target_compile_options(peer_sum_mpi_test PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr>)
  add_dependencies(gpu_tests peer_sum_mpi_test)
  foreach(ranks 2 4)
    add_test(NAME peer_sum_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks}
                     $<TARGET_FILE:peer_sum_mpi_test>)
    set_tests_properties(peer_sum_mpi_test_${ranks} PROPERTIES TIMEOUT 180 LABELS "mpi;gpu"
      SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu)
  endforeach()
endif()
