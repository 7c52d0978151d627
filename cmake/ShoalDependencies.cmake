# Finds what Shoal builds on: distribution packages or a prefix in CMAKE_PREFIX_PATH. All that is missing is listed at once.
find_package(PkgConfig QUIET)
set(SHOAL_MISSING "")
macro(shoal_need name package least)
  if(NOT ${name}_FOUND)
    list(APPEND SHOAL_MISSING "  ${name} >= ${least} (Debian: ${package})")
  endif()
endmacro()

find_package(Threads REQUIRED)
find_package(MPI COMPONENTS CXX QUIET)
if(MPI_CXX_FOUND)
  set(MPI_FOUND TRUE)
endif()
shoal_need(MPI "libopenmpi-dev openmpi-bin" 4.0)
find_package(Protobuf QUIET)
shoal_need(Protobuf "libprotobuf-dev protobuf-compiler" 3.21)
find_package(absl QUIET)
shoal_need(absl libabsl-dev 20220623)
find_package(glog QUIET)
shoal_need(glog libgoogle-glog-dev 0.6)
find_package(CLI11 QUIET)
shoal_need(CLI11 libcli11-dev 2.1)
find_package(nlohmann_json QUIET)
shoal_need(nlohmann_json nlohmann-json3-dev 3.10)
find_package(simdjson QUIET)
shoal_need(simdjson libsimdjson-dev 2.0)
find_package(ZLIB QUIET)
shoal_need(ZLIB zlib1g-dev 1.2.11)
find_package(JPEG QUIET)
shoal_need(JPEG libjpeg-dev 1.5)
find_package(PNG QUIET)
shoal_need(PNG libpng-dev 1.6)

# Libraries without CMake packages of their own in Debian 12: header plus library, into one imported target each.
function(shoal_library name header library)
  find_path(${name}_INCLUDE_DIR ${header})
  find_library(${name}_LIBRARY ${library})
  if(${name}_INCLUDE_DIR AND ${name}_LIBRARY)
    set(${name}_FOUND TRUE PARENT_SCOPE)
    add_library(shoal::${name} UNKNOWN IMPORTED)
    set_target_properties(shoal::${name} PROPERTIES IMPORTED_LOCATION ${${name}_LIBRARY}
      INTERFACE_INCLUDE_DIRECTORIES ${${name}_INCLUDE_DIR})
  endif()
endfunction()
# oneDNN's own CMake package asks for OpenCL in Debian 12, which Shoal does not use.
shoal_library(dnnl dnnl.h dnnl)
shoal_need(dnnl libdnnl-dev 2.6)
shoal_library(hwloc hwloc.h hwloc)
shoal_need(hwloc libhwloc-dev 2.0)
shoal_library(xxhash xxhash.h xxhash)
shoal_need(xxhash libxxhash-dev 0.8)
shoal_library(zstd zstd.h zstd)
shoal_need(zstd libzstd-dev 1.5)
shoal_library(hwy hwy/highway.h hwy)
shoal_need(hwy libhwy-dev 1.0)
shoal_library(pcre2 pcre2.h pcre2-8)
shoal_need(pcre2 libpcre2-dev 10.40)
# Optional but for tests: without it `shoal plan` has quick bounds only.
shoal_library(clp coin/ClpSimplex.hpp Clp)
shoal_library(coinutils coin/CoinFinite.hpp CoinUtils)
if(SHOAL_TESTS)
  find_package(GTest QUIET)
  shoal_need(GTest "libgtest-dev libgmock-dev" 1.12)
  shoal_need(clp coinor-libclp-dev 1.17)  # bounds of plans are tested, not skipped
  shoal_need(coinutils coinor-libcoinutils-dev 2.11)
endif()

if(SHOAL_MISSING)
  list(JOIN SHOAL_MISSING "\n" SHOAL_MISSING_TEXT)
  message(FATAL_ERROR "Shoal does not find:\n${SHOAL_MISSING_TEXT}\n"
    "On Debian or Ubuntu `launch/setup` installs them; elsewhere put their prefixes into CMAKE_PREFIX_PATH.")
endif()

add_library(shoal_dependencies INTERFACE)
target_include_directories(shoal_dependencies INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/proto)
target_link_libraries(shoal_dependencies INTERFACE
  absl::status absl::statusor absl::strings absl::str_format absl::synchronization absl::time absl::span
  absl::function_ref absl::any_invocable absl::flat_hash_map absl::flat_hash_set absl::inlined_vector
  glog::glog protobuf::libprotobuf shoal::dnnl nlohmann_json::nlohmann_json simdjson::simdjson ZLIB::ZLIB JPEG::JPEG PNG::PNG
  CLI11::CLI11 shoal::hwloc shoal::pcre2 shoal::xxhash shoal::zstd shoal::hwy Threads::Threads)

# GPU back ends: found, printed, and compiled when the toolkit is there. They never change the CPU build.
find_package(CUDAToolkit QUIET)
message(STATUS "MPI ${MPI_CXX_VERSION}, Protobuf ${Protobuf_VERSION}, Abseil ${absl_VERSION}, oneDNN ${dnnl_LIBRARY}, "
  "CLP ${clp_LIBRARY} (optional: coinor-libclp-dev), "
  "CUDA toolkit ${CUDAToolkit_VERSION} (no CUDA back end in this build)")
