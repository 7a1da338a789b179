# The GPU backend: a module that cuda_module.cc loads. Everything it needs of this project is linked
# into it; cuBLASLt is the only CUDA library, the runtime is static.
file(GLOB cuda_kernels CONFIGURE_DEPENDS cuda/*.cu)
add_library(trireme_cuda MODULE ${cuda_kernels} cuda/backend.cc cuda/backend_peers.cc cuda/check.cc cuda/cublas_gemm.cc
            cuda/device_choices.cc cuda/device_logits.cc cuda/module.cc
            cuda/plan_decode.cc cuda/plan_prefill.cc cuda/step_arena.cc cuda/step_timer.cc
            cuda/streams.cc cuda/weight_upload.cc)
target_link_libraries(trireme_cuda PRIVATE trireme_options trireme_kernels CUDA::cudart_static
                      CUDA::cublasLt)
target_compile_options(trireme_cuda PRIVATE
                       $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr>)
# The same bits as on the CPU (kernels/sampling_math.h).
file(GLOB sampling_kernels CONFIGURE_DEPENDS cuda/sampling_*.cu)
set_source_files_properties(${sampling_kernels} PROPERTIES COMPILE_OPTIONS -fmad=false)
set_target_properties(trireme_cuda PROPERTIES
                      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib/trireme
                      INSTALL_RPATH "$ORIGIN/..:/usr/local/cuda/lib64")
install(TARGETS trireme_cuda LIBRARY DESTINATION lib/trireme)
set_source_files_properties(cuda/module.cc PROPERTIES
                            COMPILE_DEFINITIONS TRIREME_MODULE_BUILD="${module_build}")
