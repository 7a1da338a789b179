# Drives the built program; TRIREME_SMOLLM2 names the real model (launch/test sets it).
find_package(Python3 REQUIRED COMPONENTS Interpreter)
foreach(case offline bad_input server trace)
  add_test(NAME cli_${case}
           COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/cli_${case}_test.py)
  set_tests_properties(cli_${case} PROPERTIES TIMEOUT 300 LABELS e2e ENVIRONMENT
    "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
endforeach()
