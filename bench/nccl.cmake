if(TARGET trireme_nccl)
  add_executable(nccl_bench nccl_bench.cc)
  target_link_libraries(nccl_bench PRIVATE trireme_parallel_mpi CUDA::cudart_static)
  add_dependencies(nccl_bench trireme_nccl)
  add_executable(sums_bench sums_bench.cc)
  target_link_libraries(sums_bench PRIVATE trireme_kernels trireme_parallel_mpi)
  add_dependencies(sums_bench trireme_nccl trireme_cuda)
  add_executable(sequence_norm_bench sequence_norm_bench.cc)
  target_include_directories(sequence_norm_bench SYSTEM PRIVATE ${NCCL_INCLUDE_DIR}
                                                                ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(sequence_norm_bench PRIVATE trireme_kernels trireme_parallel_mpi
                                                    ${NCCL_LIBRARY})
  add_dependencies(sequence_norm_bench trireme_cuda)
endif()
