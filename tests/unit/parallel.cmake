trireme_test(parallel_communicator_test SOURCES parallel_communicator_test.cc
             DEPENDS trireme_test_communicator TIMEOUT 120 LABELS threads)
