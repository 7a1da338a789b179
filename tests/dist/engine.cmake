add_executable(engine_mpi_test engine_mpi_test.cc)
target_link_libraries(engine_mpi_test PRIVATE trireme_test_engine GTest::gtest)
target_compile_definitions(engine_mpi_test PRIVATE
  TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
foreach(ranks 2 4)
  add_test(NAME engine_mpi_test_${ranks}
           COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ranks} $<TARGET_FILE:engine_mpi_test>)
  set_tests_properties(engine_mpi_test_${ranks} PROPERTIES TIMEOUT 120 LABELS mpi)
endforeach()
