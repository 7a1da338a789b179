trireme_test(scheduler_property_test SOURCES scheduler_property_test.cc DEPENDS trireme_scheduler
             TIMEOUT 120)
