trireme_library(trireme_test_model SOURCES model_fixture.cc model_runner.cc
                DEPENDS trireme_model trireme_test_communicator GTest::gtest)
