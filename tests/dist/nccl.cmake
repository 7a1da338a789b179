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
endif()
