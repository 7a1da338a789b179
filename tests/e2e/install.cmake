# As users get it: installed, from Python, and by launchers.
add_test(NAME install
         COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/install_test.py)
set_tests_properties(install PROPERTIES TIMEOUT 120 LABELS e2e ENVIRONMENT
  "TRIREME_BUILD=${PROJECT_BINARY_DIR};TRIREME_ROOT=${PROJECT_SOURCE_DIR};TRIREME_VERSION=${PROJECT_VERSION};CMAKE=${CMAKE_COMMAND}")
foreach(case launcher python_client)
  add_test(NAME ${case}
           COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/${case}_test.py)
  set_tests_properties(${case} PROPERTIES TIMEOUT 180 LABELS e2e SKIP_RETURN_CODE 77 ENVIRONMENT
    "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
endforeach()
