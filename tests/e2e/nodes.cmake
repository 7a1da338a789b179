# Ranks that take themselves for ranks of several nodes, by their environment.
add_test(NAME nodes COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/nodes_test.py)
set_tests_properties(nodes PROPERTIES TIMEOUT 120 LABELS e2e ENVIRONMENT
  "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
if(TRIREME_HAVE_CUDA)
  add_test(NAME gpu_nodes
           COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/gpu_nodes_test.py)
  set_tests_properties(gpu_nodes PROPERTIES TIMEOUT 240 LABELS "gpu;e2e" SKIP_RETURN_CODE 77
    ENVIRONMENT "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
  # What a start on one GPU says and refuses.
  add_test(NAME gpu_start
           COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/gpu_start_test.py)
  # Nothing else may take the GPU's memory meanwhile.
  set_tests_properties(gpu_start PROPERTIES TIMEOUT 240 LABELS "gpu;e2e" SKIP_RETURN_CODE 77
    RUN_SERIAL ON
    ENVIRONMENT "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
endif()
