trireme_test(scheduler_property_test SOURCES scheduler_property_test.cc DEPENDS trireme_scheduler
             TIMEOUT 120)
trireme_test(step_plan_test SOURCES step_plan_test.cc DEPENDS trireme_scheduler TIMEOUT 30)
trireme_test(kv_cache_pool_test SOURCES kv_cache_pool_test.cc DEPENDS trireme_scheduler TIMEOUT 60)
trireme_test(scheduler_test
  SOURCES scheduler_test.cc scheduler_blocks_test.cc scheduler_prefix_test.cc scheduler_limits_test.cc
  DEPENDS trireme_scheduler TIMEOUT 30)
trireme_test(scheduler_ahead_test SOURCES scheduler_ahead_test.cc DEPENDS trireme_scheduler TIMEOUT 30)
trireme_test(scheduler_balance_test SOURCES scheduler_balance_test.cc DEPENDS trireme_scheduler)
