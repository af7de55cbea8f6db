# Cross-compiles for Debian arm64 with the host's clang and lld. The sysroot is
# that of `tests/rig/build sysroot`:
#   cmake -B build --toolchain tests/rig/arm64-toolchain.cmake \
#         -DVIOD_SYSROOT=$(tests/rig/build --path sysroot)
# (clang and not Debian's cross gcc, which ignores the headers of a sysroot.)
set(VIOD_SYSROOT "$ENV{VIOD_SYSROOT}" CACHE PATH "Debian arm64 sysroot")
# try_compile() runs this file again, in a project without our cache.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES VIOD_SYSROOT)
if(NOT EXISTS "${VIOD_SYSROOT}/usr/include")
  message(FATAL_ERROR "VIOD_SYSROOT is not a sysroot; try $(tests/rig/build --path sysroot)")
endif()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_SYSROOT "${VIOD_SYSROOT}")
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

set(CMAKE_C_COMPILER clang)
set(CMAKE_C_COMPILER_TARGET aarch64-linux-gnu)
foreach(kind EXE SHARED MODULE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT "-fuse-ld=lld")
endforeach()

set(CMAKE_FIND_ROOT_PATH "${VIOD_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

set(ENV{PKG_CONFIG_SYSROOT_DIR} "${VIOD_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR}
    "${VIOD_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${VIOD_SYSROOT}/usr/share/pkgconfig")
