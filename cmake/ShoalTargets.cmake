# shoal_folder(NAME DEPENDS target...): one static library per top-level folder from all of its .cc and .proto files.
# A new file needs no edit here. launch/main.cc is the program and stays out.
function(shoal_folder name)
  cmake_parse_arguments(ARG "" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${name}/*.cc)
  list(FILTER sources EXCLUDE REGEX "/launch/main\\.cc$")
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
    set_source_files_properties(${cc} PROPERTIES COMPILE_OPTIONS "-w")
  endforeach()
  add_library(shoal_${name} STATIC ${sources} ${generated})
  set_target_properties(shoal_${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(shoal_${name} PUBLIC ${ARG_DEPENDS})
endfunction()

# The row kernels are plain loops that the compiler vectorises, once per dispatch target.
set_source_files_properties(runtime/ops/cpu/row_kernels.cc runtime/ops/cpu/image_kernels.cc runtime/ops/cpu/conv_kernels.cc PROPERTIES
  COMPILE_OPTIONS "-O3;-fno-math-errno;$<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>")  # Clang leaves some loops of a target scalar
set_source_files_properties(comm/reduce.cc comm/encoded_reduction.cc launch/commands/stream_kernel.cc PROPERTIES COMPILE_OPTIONS "-O3")
set_source_files_properties(optim/kernels.cc comm/compression_planner.cc comm/codec/kernels.cc comm/codec/power_sgd.cc PROPERTIES
  COMPILE_OPTIONS "-O3;-fno-math-errno;-ffp-contract=off")
