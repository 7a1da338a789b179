# Each layout of the soak takes 10 s here and TRIREME_SOAK_SECONDS=60 for the whole one.
trireme_test(soak_test SOURCES soak_test.cc
             DEPENDS trireme_test_engine trireme_coordinator trireme_client
             nlohmann_json::nlohmann_json TIMEOUT 300 LABELS e2e)
