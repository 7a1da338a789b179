trireme_library(trireme_scheduler
  SOURCES kv_cache_pool.cc prefix_hash.cc profiles.cc scheduler.cc scheduler_admit.cc
          scheduler_apply.cc scheduler_plan.cc scheduler_state.cc sequence.cc step_plan.cc
  DEPENDS trireme_base)
