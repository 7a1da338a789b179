if(TRIREME_HAVE_CUDA)
  add_executable(sampling_bench sampling_bench.cc)
  target_link_libraries(sampling_bench PRIVATE trireme_sampler trireme_kernels)
endif()
