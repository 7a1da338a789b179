trireme_test(stop_strings_test SOURCES stop_strings_test.cc DEPENDS trireme_frontend)
foreach(name frontend frontend_end frontend_check)
  trireme_test(${name}_test SOURCES ${name}_test.cc DEPENDS trireme_frontend TIMEOUT 120
               LABELS threads)
endforeach()
foreach(name coordinator coordinator_server)
  trireme_test(${name}_test SOURCES ${name}_test.cc DEPENDS trireme_coordinator trireme_client)
endforeach()
trireme_test(coordinator_messages_test SOURCES coordinator_messages_test.cc
             DEPENDS trireme_coordinator)
trireme_test(load_generator_test SOURCES load_generator_test.cc
             DEPENDS trireme_coordinator trireme_load)
