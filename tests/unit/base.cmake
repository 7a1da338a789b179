foreach(part dtype thread_pool numa memory error)
  trireme_test(base_${part}_test SOURCES base_${part}_test.cc DEPENDS trireme_base TIMEOUT 60
               LABELS unit)
endforeach()
