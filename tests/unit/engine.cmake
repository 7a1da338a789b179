trireme_test(sampler_test SOURCES sampler_test.cc DEPENDS trireme_sampler TIMEOUT 60)
