trireme_test(sampler_test SOURCES sampler_test.cc DEPENDS trireme_sampler TIMEOUT 60)
trireme_library(trireme_test_engine SOURCES engine_world.cc DEPENDS trireme_engine)
target_compile_definitions(trireme_test_engine PRIVATE
  TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
trireme_test(engine_test SOURCES engine_test.cc DEPENDS trireme_test_engine trireme_test_model
             TIMEOUT 240 LABELS threads)
foreach(part equality window)
  trireme_test(engine_${part}_test SOURCES engine_${part}_test.cc DEPENDS trireme_test_engine
               TIMEOUT 240 LABELS threads)
endforeach()
trireme_test(instance_test SOURCES instance_test.cc DEPENDS trireme_test_engine TIMEOUT 240)
trireme_test(worker_test SOURCES worker_test.cc DEPENDS trireme_engine TIMEOUT 30)
