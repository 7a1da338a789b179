# The two ways in which this project makes targets: trireme_library() and trireme_test().

add_library(trireme_options INTERFACE)
target_include_directories(trireme_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(trireme_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -ffp-contract=off $<$<BOOL:${TRIREME_WERROR}>:-Werror>>)
if(TRIREME_SANITIZE)
  # At -O2 the vector kernels take GCC minutes each when instrumented.
  target_compile_options(trireme_options INTERFACE -O1 -fsanitize=${TRIREME_SANITIZE}
                         -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  target_link_options(trireme_options INTERFACE -fsanitize=${TRIREME_SANITIZE})
endif()

# trireme_library(NAME SOURCES a.cc b.cc [DEPENDS lib…]): a static library of this project.
function(trireme_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC trireme_options ${ARG_DEPENDS})
endfunction()

# trireme_test(NAME SOURCES a.cc [DEPENDS lib…] [RANKS n] [TIMEOUT s] [LABELS l…]): one GoogleTest
# program and one ctest entry, under mpirun with RANKS ranks where that is given. Its folder under
# tests/ is a label too. The targets unit_tests (unit and kernels) and thread_tests (label threads)
# build what the sanitizer runs need, gpu_tests what launch/test --gpu runs.
add_custom_target(gpu_tests)
add_custom_target(unit_tests)
add_custom_target(thread_tests)
function(trireme_test name)
  cmake_parse_arguments(ARG "" "RANKS;TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 60)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  # The code under test is optimized; the tests themselves build faster this way.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(${name} PRIVATE
    TRIREME_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures" TRIREME_BINARY_DIR="${PROJECT_BINARY_DIR}")
  if(ARG_RANKS)
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest)
    add_test(NAME ${name} COMMAND ${PROJECT_SOURCE_DIR}/launch/mpirun -n ${ARG_RANKS}
             $<TARGET_FILE:${name}>)
  else()
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
  endif()
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  set(labels ${folder} ${ARG_LABELS})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${labels}")
  if("unit" IN_LIST labels OR "kernels" IN_LIST labels)
    add_dependencies(unit_tests ${name})
  endif()
  if("threads" IN_LIST labels)
    add_dependencies(thread_tests ${name})
  endif()
endfunction()
