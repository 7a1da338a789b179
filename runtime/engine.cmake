# The sampler alone, and all that executes steps: worker, engine, instance.
trireme_library(trireme_sampler
  SOURCES logit_rows.cc sampler.cc sampler_queue.cc sampler_row.cc sampler_threshold.cc sampler_work.cc
  DEPENDS trireme_base trireme_scheduler trireme_parallel)
trireme_library(trireme_engine
  SOURCES engine.cc instance.cc instance_dtypes.cc instance_layout.cc instance_memory.cc instance_needs.cc instance_phase.cc instance_tokenizer.cc memory.cc plan_hash.cc
          token_return.cc warm_up.cc worker.cc worker_run.cc
          worker_sample.cc worker_slots.cc
  DEPENDS trireme_sampler trireme_scheduler trireme_request_log trireme_model trireme_kernels trireme_parallel_mpi
          trireme_tokenizer trireme_base)
