# The sampler alone, and all that executes steps: worker, engine, instance.
trireme_library(trireme_sampler
  SOURCES sampler.cc sampler_row.cc
  DEPENDS trireme_base trireme_scheduler trireme_parallel)
