# One rank of several goes wrong, and the others say which. TRIREME_FAULT_ROUNDS=50 repeats each case.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_executable(fault_mpi_test fault_mpi_test.cc)
target_link_libraries(fault_mpi_test PRIVATE trireme_test_engine)
target_compile_options(fault_mpi_test PRIVATE $<$<CONFIG:Release>:-O1>)
add_test(NAME fault_mpi_test
         COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/fault_test.py)
set_tests_properties(fault_mpi_test PROPERTIES TIMEOUT 240 LABELS mpi ENVIRONMENT
  "FAULT_PROGRAM=$<TARGET_FILE:fault_mpi_test>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
if(TRIREME_HAVE_CUDA)
  add_dependencies(gpu_tests fault_mpi_test)
  add_test(NAME gpu_fault_mpi_test
           COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/fault_test.py)
  set_tests_properties(gpu_fault_mpi_test PROPERTIES TIMEOUT 480 LABELS "gpu;mpi"
    SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu ENVIRONMENT
    "FAULT_PROGRAM=$<TARGET_FILE:fault_mpi_test>;TRIREME_ROOT=${PROJECT_SOURCE_DIR};TRIREME_FAULT_DEVICE=cuda;TRIREME_FAULT_RANKS=2;TRIREME_FAULT_ROUNDS=5;TRIREME_MODULE_PATH=${PROJECT_BINARY_DIR}/lib/trireme")
endif()
