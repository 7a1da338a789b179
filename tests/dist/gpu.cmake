# On machines with GPUs: launch/test --gpu runs the tests of the label gpu.
if(TRIREME_HAVE_CUDA)
  add_executable(gpu_model_mpi_test gpu_model_mpi_test.cc)
  target_link_libraries(gpu_model_mpi_test PRIVATE trireme_test_model trireme_parallel_mpi
                        GTest::gtest)
  target_compile_options(gpu_model_mpi_test PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(gpu_model_mpi_test PRIVATE
    TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
  foreach(ranks 1 2 4)
    add_test(NAME gpu_model_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks}
                     $<TARGET_FILE:gpu_model_mpi_test>)
    set_tests_properties(gpu_model_mpi_test_${ranks} PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
      SKIP_RETURN_CODE 77
      ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)
  endforeach()

  add_executable(gpu_smollm2_mpi_test gpu_smollm2_mpi_test.cc)
  target_link_libraries(gpu_smollm2_mpi_test PRIVATE trireme_test_model trireme_parallel_mpi
                        GTest::gtest)
  add_dependencies(gpu_tests gpu_smollm2_mpi_test)
  foreach(ranks 1 2 4)
    add_test(NAME gpu_smollm2_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks}
                     $<TARGET_FILE:gpu_smollm2_mpi_test>)
    set_tests_properties(gpu_smollm2_mpi_test_${ranks} PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
      SKIP_RETURN_CODE 77
      ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)
  endforeach()
  add_executable(gpu_engine_mpi_test gpu_engine_mpi_test.cc)
  target_link_libraries(gpu_engine_mpi_test PRIVATE trireme_test_engine GTest::gtest)
  target_compile_definitions(gpu_engine_mpi_test PRIVATE
    TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
  add_dependencies(gpu_tests gpu_engine_mpi_test)
  foreach(ranks 1 2 4)
    add_test(NAME gpu_engine_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks}
                     $<TARGET_FILE:gpu_engine_mpi_test>)
    set_tests_properties(gpu_engine_mpi_test_${ranks} PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
      SKIP_RETURN_CODE 77
      ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)
  endforeach()

  # Layouts of four ranks where there are fewer GPUs: a part of the same tests.
  foreach(test gpu_model_mpi_test gpu_smollm2_mpi_test gpu_engine_mpi_test)
    add_test(NAME ${test}_shared
             COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/shared_gpus 4 $<TARGET_FILE:${test}>)
    set_tests_properties(${test}_shared PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
      SKIP_RETURN_CODE 77
      ENVIRONMENT "TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme;TRIREME_TEST_BRIEF=1")
  endforeach()

  add_executable(gpu_flow_mpi_test gpu_flow_mpi_test.cc)
  target_link_libraries(gpu_flow_mpi_test PRIVATE trireme_model trireme_parallel_mpi)
  add_dependencies(gpu_tests gpu_flow_mpi_test)
  foreach(ranks 2 4)
    add_test(NAME gpu_flow_mpi_test_${ranks}
             COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks}
                     $<TARGET_FILE:gpu_flow_mpi_test>)
    set_tests_properties(gpu_flow_mpi_test_${ranks} PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
      SKIP_RETURN_CODE 77
      ENVIRONMENT TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme)
  endforeach()
endif()
