trireme_test(stop_strings_test SOURCES stop_strings_test.cc DEPENDS trireme_frontend)
trireme_test(frontend_test SOURCES frontend_test.cc DEPENDS trireme_frontend)
trireme_test(frontend_check_test SOURCES frontend_check_test.cc DEPENDS trireme_frontend)
trireme_test(coordinator_test SOURCES coordinator_test.cc
             DEPENDS trireme_coordinator trireme_client)
trireme_test(load_generator_test SOURCES load_generator_test.cc
             DEPENDS trireme_coordinator trireme_load)
