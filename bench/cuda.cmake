# Kernels of the GPU backend by themselves, each beside a limit or a library in the same run.
if(TRIREME_HAVE_CUDA)
  set(cuda_sources ${PROJECT_SOURCE_DIR}/kernels/cuda)
  add_executable(cuda_gemm_bench EXCLUDE_FROM_ALL cuda_gemm_bench.cu ${cuda_sources}/skinny_gemm.cu
                 ${cuda_sources}/gemm_bias.cu ${cuda_sources}/elementwise.cu ${cuda_sources}/cublas_gemm.cc ${cuda_sources}/check.cc)
  add_executable(cuda_decode_bench EXCLUDE_FROM_ALL cuda_decode_bench.cu
                 ${cuda_sources}/decode_attention.cu ${cuda_sources}/prepare_qkv.cu
                 ${cuda_sources}/plan_decode.cc ${cuda_sources}/check.cc)
  add_executable(cuda_prefill_bench EXCLUDE_FROM_ALL cuda_prefill_bench.cu
                 ${cuda_sources}/prefill_attention.cu ${cuda_sources}/prefill_attention_hopper.cu
                 ${cuda_sources}/prefill_attention_mma.cu ${cuda_sources}/plan_prefill.cc
                 ${cuda_sources}/check.cc)
  add_executable(cuda_mixed_bench EXCLUDE_FROM_ALL cuda_mixed_bench.cu
                 ${cuda_sources}/prefill_attention.cu ${cuda_sources}/prefill_attention_hopper.cu
                 ${cuda_sources}/prefill_attention_mma.cu ${cuda_sources}/plan_prefill.cc
                 ${cuda_sources}/decode_attention.cu ${cuda_sources}/plan_decode.cc
                 ${cuda_sources}/check.cc)
  file(GLOB sampling_sources CONFIGURE_DEPENDS ${cuda_sources}/sampling_*.cu)
  add_executable(cuda_sampling_bench EXCLUDE_FROM_ALL cuda_sampling_bench.cu ${sampling_sources}
                 ${cuda_sources}/limits.cu ${cuda_sources}/check.cc)
  # The same bits as on the CPU (kernels/sampling_math.h).
  set_source_files_properties(${sampling_sources} PROPERTIES COMPILE_OPTIONS -fmad=false)
  foreach(name gemm decode prefill mixed sampling)
    target_link_libraries(cuda_${name}_bench PRIVATE trireme_options trireme_base
                          CUDA::cudart_static CUDA::cublasLt)
    target_compile_options(cuda_${name}_bench PRIVATE
                           $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
  endforeach()
  add_custom_target(gpu_benches DEPENDS cuda_gemm_bench cuda_decode_bench cuda_prefill_bench
                    cuda_mixed_bench cuda_sampling_bench)
endif()
