foreach(name config decoder_replay gguf inspect packed_matrix prefill_parts safetensors tensor_sums)
  trireme_test(${name}_test SOURCES ${name}_test.cc DEPENDS trireme_model)
endforeach()
trireme_test(parity_test SOURCES parity_test.cc DEPENDS trireme_test_model TIMEOUT 240
             LABELS threads)
trireme_test(parity_smollm2_test SOURCES parity_smollm2_test.cc DEPENDS trireme_test_model
             TIMEOUT 300 LABELS threads)
trireme_test(parity_invariance_test SOURCES parity_invariance_test.cc DEPENDS trireme_test_model
             TIMEOUT 480 LABELS threads)
trireme_test(families_test SOURCES families_test.cc DEPENDS trireme_test_model)
trireme_test(loader_test SOURCES loader_test.cc DEPENDS trireme_test_model)
