# The GPU backend: a module for each element type (cuda/element.h) that cuda_module.cc loads. All that
# they need of this project is linked into them; cuBLASLt is the only CUDA library, the runtime is
# static.
set(cuda_flags $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr>)

# What knows no element: plans, sampling and its logits. Compiled once.
file(GLOB sampling_kernels CONFIGURE_DEPENDS cuda/sampling_*.cu)
set(cuda_common ${sampling_kernels} cuda/limits.cu cuda/step_timer.cu cuda/check.cc cuda/device_choices.cc
    cuda/device_logits.cc cuda/plan_decode.cc cuda/plan_prefill.cc cuda/step_arena.cc
    cuda/step_timer.cc)
add_library(trireme_cuda_common OBJECT ${cuda_common})
target_link_libraries(trireme_cuda_common PRIVATE trireme_options trireme_base CUDA::cudart_static)
target_compile_options(trireme_cuda_common PRIVATE ${cuda_flags})
target_compile_definitions(trireme_cuda_common PRIVATE TRIREME_CUDA_COMMON)
# The same bits as on the CPU (kernels/sampling_math.h).
set_source_files_properties(${sampling_kernels} PROPERTIES COMPILE_OPTIONS -fmad=false)

file(GLOB element_kernels CONFIGURE_DEPENDS cuda/*.cu)
foreach(source IN LISTS cuda_common)
  get_filename_component(source ${source} ABSOLUTE)
  list(REMOVE_ITEM element_kernels ${source})
endforeach()
foreach(element bf16 f16)
  set(module trireme_cuda_${element})
  add_library(${module} MODULE ${element_kernels} cuda/backend.cc cuda/backend_experts.cc
              cuda/backend_peers.cc cuda/cublas_gemm.cc cuda/module.cc cuda/streams.cc
              cuda/weight_upload.cc
              $<TARGET_OBJECTS:trireme_cuda_common>)
  target_link_libraries(${module} PRIVATE trireme_options trireme_kernels CUDA::cudart_static
                        CUDA::cublasLt)
  target_compile_options(${module} PRIVATE ${cuda_flags})
  target_link_options(${module} PRIVATE -Wl,-z,defs)
  if(element STREQUAL "f16")
    target_compile_definitions(${module} PRIVATE TRIREME_CUDA_F16)
  endif()
  set_target_properties(${module} PROPERTIES
                        LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib/trireme
                        INSTALL_RPATH "$ORIGIN/..:/usr/local/cuda/lib64")
  install(TARGETS ${module} LIBRARY DESTINATION lib/trireme)
endforeach()
# Both, for what depends on them.
add_custom_target(trireme_cuda DEPENDS trireme_cuda_bf16 trireme_cuda_f16)
set_source_files_properties(cuda/module.cc PROPERTIES
                            COMPILE_DEFINITIONS TRIREME_MODULE_BUILD="${module_build}")
