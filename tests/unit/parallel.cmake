trireme_test(parallel_communicator_test SOURCES parallel_communicator_test.cc
             DEPENDS trireme_test_communicator TIMEOUT 120 LABELS threads)
trireme_test(parallel_shared_group_test SOURCES parallel_shared_group_test.cc
             DEPENDS trireme_test_communicator TIMEOUT 120 LABELS threads)
trireme_test(parallel_doorbell_test SOURCES parallel_doorbell_test.cc
             DEPENDS trireme_test_communicator LABELS threads)
trireme_test(parallel_ledger_test SOURCES parallel_ledger_test.cc
             DEPENDS trireme_test_communicator LABELS threads)
trireme_test(parallel_diagnosis_test SOURCES parallel_diagnosis_test.cc DEPENDS trireme_parallel)
trireme_test(parallel_watchdog_test SOURCES parallel_watchdog_test.cc
             DEPENDS trireme_test_communicator LABELS threads)
trireme_test(parallel_layout_test SOURCES parallel_layout_test.cc DEPENDS trireme_parallel)
trireme_test(parallel_choose_layout_test SOURCES parallel_choose_layout_test.cc
             DEPENDS trireme_parallel)
trireme_test(parallel_layout_parse_test SOURCES parallel_layout_parse_test.cc
             DEPENDS trireme_parallel)
target_compile_definitions(parallel_layout_parse_test PRIVATE
  TRIREME_CLUSTER_CONFIGS="${PROJECT_SOURCE_DIR}/cluster_configs")
