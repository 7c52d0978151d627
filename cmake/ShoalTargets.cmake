# shoal_folder(NAME DEPENDS target... [WITHOUT file...]): one static library per top-level folder from all of its .cc and .proto
# files, but for back ends that this build has not. A new file needs no edit here. launch/main.cc is the program and stays out.
function(shoal_folder name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;WITHOUT" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${name}/*.cc)
  list(FILTER sources EXCLUDE REGEX "/launch/main\\.cc$")
  foreach(file ${ARG_WITHOUT})
    list(REMOVE_ITEM sources ${CMAKE_SOURCE_DIR}/${name}/${file})
  endforeach()
  list(FILTER sources EXCLUDE REGEX "/bench/")
  file(GLOB_RECURSE protos CONFIGURE_DEPENDS ${name}/*.proto)
  set(generated "")
  foreach(proto ${protos})
    file(RELATIVE_PATH relative ${CMAKE_SOURCE_DIR} ${proto})
    string(REPLACE ".proto" ".pb.cc" cc ${CMAKE_BINARY_DIR}/proto/${relative})
    string(REPLACE ".proto" ".pb.h" h ${CMAKE_BINARY_DIR}/proto/${relative})
    add_custom_command(OUTPUT ${cc} ${h}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/proto
      COMMAND protobuf::protoc --cpp_out=${CMAKE_BINARY_DIR}/proto -I ${CMAKE_SOURCE_DIR} ${relative}
      WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} DEPENDS ${proto})
    list(APPEND generated ${cc} ${h})
    set_source_files_properties(${cc} PROPERTIES COMPILE_OPTIONS "-w" SKIP_UNITY_BUILD_INCLUSION ON)
  endforeach()
  add_library(shoal_${name} STATIC ${sources} ${generated})
  set_target_properties(shoal_${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(shoal_${name} PUBLIC ${ARG_DEPENDS})
  if(SHOAL_PRECOMPILE)
    set_source_files_properties(${generated} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    if(name STREQUAL "runtime")
      target_precompile_headers(shoal_runtime PRIVATE ${SHOAL_COMMON_HEADERS})
    else()
      target_precompile_headers(shoal_${name} REUSE_FROM shoal_runtime)
    endif()
  endif()
endfunction()

# What most sources include, from outside. Sources name what they use all the same: builds without sanitizers have none of this.
set(SHOAL_COMMON_HEADERS <algorithm> <cmath> <cstdint> <cstring> <functional> <limits> <map> <memory> <mutex> <optional>
  <string> <utility> <vector> <glog/logging.h> <nlohmann/json.hpp> <absl/status/status.h> <absl/status/statusor.h>
  <absl/strings/match.h> <absl/strings/numbers.h> <absl/strings/str_cat.h> <absl/strings/str_format.h>
  <absl/strings/str_join.h> <absl/strings/str_split.h> <absl/strings/string_view.h> <absl/types/span.h>)

# Sources with options of their own cannot share what the others have precompiled, nor be compiled with them.
function(shoal_source_options options)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${options}" SKIP_PRECOMPILE_HEADERS ON
    SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
# The row kernels are plain loops that the compiler vectorises, once per dispatch target. Clang leaves some loops of a target
# scalar. Those with exp (exp-inl.h): without -fno-tree-pre GCC gives the constants that it clamps to branches of their own, and
# leaves its loops scalar on AVX2.
set(row_kernel_options -O3 -fno-math-errno $<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>)
shoal_source_options("${row_kernel_options}" runtime/ops/cpu/conv_kernels.cc)
shoal_source_options("${row_kernel_options};$<$<CXX_COMPILER_ID:GNU>:-fno-tree-pre>"
  runtime/ops/cpu/row_kernels.cc runtime/ops/cpu/image_kernels.cc)
shoal_source_options("-O3" comm/reduce.cc comm/encoded_reduction.cc launch/commands/stream_kernel.cc)
shoal_source_options("-O3;-fno-math-errno;-ffp-contract=off"
  optim/kernels.cc comm/compression_planner.cc comm/codec/kernels.cc comm/codec/level_model.cc comm/codec/spelling.cc
  comm/codec/ecsq.cc comm/codec/power_sgd.cc)
