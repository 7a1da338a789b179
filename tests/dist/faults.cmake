# One rank of several goes wrong, and the others say which. TRIREME_FAULT_ROUNDS=50 repeats each case.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_executable(fault_mpi_test fault_mpi_test.cc)
target_link_libraries(fault_mpi_test PRIVATE trireme_test_engine)
target_compile_options(fault_mpi_test PRIVATE $<$<CONFIG:Release>:-O1>)
add_test(NAME fault_mpi_test
         COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/fault_test.py)
set_tests_properties(fault_mpi_test PROPERTIES TIMEOUT 240 LABELS mpi ENVIRONMENT
  "FAULT_PROGRAM=$<TARGET_FILE:fault_mpi_test>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
