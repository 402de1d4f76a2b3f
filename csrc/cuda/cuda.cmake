# The library cer_cuda: the launchers and kernels of csrc/cuda, with a static CUDA runtime (loads without a driver).

# Architectures are set before the language is enabled: detection then needs no GPU. Real code for the chips this is
# measured on, PTX of the newest for what comes after.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real")
  if(known MATCHES "compute_100")
    list(APPEND CMAKE_CUDA_ARCHITECTURES "100-real;100-virtual")
  else()
    list(APPEND CMAKE_CUDA_ARCHITECTURES "90-virtual")
  endif()
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)

file(GLOB cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.cu")
add_library(cer_cuda STATIC ${cuda_sources})
target_include_directories(cer_cuda PRIVATE "${CMAKE_CURRENT_LIST_DIR}/..")
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
target_compile_definitions(cer_cuda INTERFACE CER_WITH_CUDA
  CER_CUDA_ARCHS="${architectures}" CER_CUDA_TOOLKIT="${CMAKE_CUDA_COMPILER_VERSION}")
