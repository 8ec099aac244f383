# One function per kind of target, so that flags live in one place and no target sets its own.
include(CheckCXXCompilerFlag)

# With headers of the system precompiled (SHARDTUNE_CLEAN_BUILD) GCC 12 warns of values in them that
# it follows through inlined code, falsely as above. Builds without them keep these warnings.
set(shardtune_flow_warnings)
if(SHARDTUNE_CLEAN_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  foreach(warning array-bounds stringop-overflow stringop-overread maybe-uninitialized uninitialized
          free-nonheap-object mismatched-new-delete dangling-pointer use-after-free nonnull
          format-overflow format-truncation alloc-size-larger-than)
    list(APPEND shardtune_flow_warnings -Wno-${warning})
  endforeach()
endif()

# Flags shared by every target. -ffp-contract=off: a fused multiply-add only where written
# (DESIGN section 8.4). Baseline x86-64-v2; faster forms are chosen at run time.
add_library(shardtune_flags INTERFACE)
target_compile_features(shardtune_flags INTERFACE cxx_std_20)
target_include_directories(shardtune_flags INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(shardtune_flags INTERFACE
  -ffp-contract=off -Wall -Wextra -Wpedantic -Wno-unused-parameter
  # GCC 12 warns falsely about std::string concatenation (GCC bug 105651).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  ${shardtune_flow_warnings}
  $<$<BOOL:${SHARDTUNE_WERROR}>:-Werror>)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(shardtune_flags INTERFACE -march=x86-64-v2)
endif()
if(SHARDTUNE_SANITIZE)
  target_compile_options(shardtune_flags INTERFACE
    -fsanitize=${SHARDTUNE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(shardtune_flags INTERFACE -fsanitize=${SHARDTUNE_SANITIZE})
endif()

# Builds from nothing (option SHARDTUNE_CLEAN_BUILD) share precompiled headers, one of the standard
# library for every folder and one with GoogleTest for the tests, and compile tests with -O1. Such
# headers hide a missing include and keep a compiler cache from serving a second work tree, so the
# option is off by default. HEADERS: standard or tests; ARGN: the third-party targets of NAME.
function(shardtune_precompile NAME HEADERS)
  if(NOT SHARDTUNE_CLEAN_BUILD)
    return()
  endif()
  set(precompiled shardtune_precompiled_${HEADERS})
  set(libs shardtune_flags)
  set(flags)
  if(HEADERS STREQUAL "tests")
    list(APPEND libs GTest::gtest_main)
    set(flags -O1)
  endif()
  if(OpenMP::OpenMP_CXX IN_LIST ARGN)  # a flag of the compiler, which must be the same
    string(APPEND precompiled _openmp)
    list(APPEND libs OpenMP::OpenMP_CXX)
  endif()
  if(NOT TARGET ${precompiled})
    add_library(${precompiled} OBJECT "${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp")
    target_link_libraries(${precompiled} PRIVATE ${libs})
    target_compile_options(${precompiled} PRIVATE ${flags})
    target_precompile_headers(${precompiled}
      PRIVATE "${PROJECT_SOURCE_DIR}/cmake/precompiled_${HEADERS}.h")
  endif()
  target_compile_options(${NAME} PRIVATE ${flags})
  target_precompile_headers(${NAME} REUSE_FROM ${precompiled})
endfunction()

# shardtune_add_library(NAME core SOURCES a.cpp ... DEPS core io ... PRIVATE_LIBS fmt::fmt ...)
# NAME is the folder; DEPS are folders, as the table in docs/architecture.md allows; PRIVATE_LIBS
# are third-party targets that no header of ours shows.
function(shardtune_add_library)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;DEPS;PRIVATE_LIBS" ${ARGN})
  add_library(shardtune_${ARG_NAME} STATIC ${ARG_SOURCES})
  add_library(shardtune::${ARG_NAME} ALIAS shardtune_${ARG_NAME})
  target_link_libraries(shardtune_${ARG_NAME} PUBLIC shardtune_flags)
  foreach(dep IN LISTS ARG_DEPS)
    target_link_libraries(shardtune_${ARG_NAME} PUBLIC shardtune_${dep})
  endforeach()
  target_link_libraries(shardtune_${ARG_NAME} PRIVATE ${ARG_PRIVATE_LIBS})
  shardtune_precompile(shardtune_${ARG_NAME} standard ${ARG_PRIVATE_LIBS})
endfunction()

# shardtune_machine_sources(OUT name ...): the sources built for more than the baseline, which run-time
# dispatch keeps off other machines: name_avx512bf16.cpp on x86-64, elsewhere name_no_bf16.cpp.
function(shardtune_machine_sources OUT)
  set(sources)
  foreach(name IN LISTS ARGN)
    if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      list(APPEND sources ${name}_no_bf16.cpp)
      continue()
    endif()
    list(APPEND sources ${name}_avx512bf16.cpp)
    set(flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma)
    # GCC 12's own intrinsics header reads an undefined vector on purpose.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND flags -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    set_source_files_properties(${name}_avx512bf16.cpp PROPERTIES
      COMPILE_OPTIONS "${flags}" SKIP_PRECOMPILE_HEADERS ON)
  endforeach()
  set(${OUT} ${sources} PARENT_SCOPE)
endfunction()

# shardtune_add_test(NAME io_test SOURCES ... DEPS io core LABELS unit [LIBS ...] [SERIAL])
# One GoogleTest program; every test of it becomes a ctest case under the labels. SERIAL: no other
# test runs beside one of them. Threads that wait give the core back soon, as with launch/run: ctest
# runs tests side by side.
function(shardtune_add_test)
  cmake_parse_arguments(ARG "SERIAL" "NAME;TIMEOUT" "SOURCES;DEPS;LABELS;LIBS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${ARG_NAME} ${ARG_SOURCES})
  target_link_libraries(${ARG_NAME} PRIVATE shardtune_flags GTest::gtest_main ${ARG_LIBS})
  target_compile_definitions(${ARG_NAME} PRIVATE
    SHARDTUNE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" SHARDTUNE_BINARY_DIR="${PROJECT_BINARY_DIR}")
  foreach(dep IN LISTS ARG_DEPS)
    target_link_libraries(${ARG_NAME} PRIVATE shardtune_${dep})
  endforeach()
  shardtune_precompile(${ARG_NAME} tests ${ARG_LIBS})
  include(GoogleTest)
  gtest_discover_tests(${ARG_NAME} DISCOVERY_MODE PRE_TEST
    PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} RUN_SERIAL ${ARG_SERIAL}
    ENVIRONMENT GOMP_SPINCOUNT=10000)
endfunction()

# Runs whole test programs once more with run-time dispatch held to a lower instruction set.
#   shardtune_add_limited_tests(TARGETS kernels_test ... SETS avx2 baseline)
function(shardtune_add_limited_tests)
  cmake_parse_arguments(ARG "" "" "TARGETS;SETS" ${ARGN})
  foreach(set IN LISTS ARG_SETS)
    foreach(target IN LISTS ARG_TARGETS)
      add_test(NAME ${set}.${target} COMMAND ${target})
      set_tests_properties(${set}.${target} PROPERTIES
        LABELS "unit" TIMEOUT 300
        ENVIRONMENT "SHARDTUNE_MAX_CPU_ISA=${set};GOMP_SPINCOUNT=10000")
    endforeach()
  endforeach()
endfunction()
