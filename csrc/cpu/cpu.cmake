# The library cer_cpu: the kernels once per instruction set, everything else once without architecture flags.
# Which set runs is chosen at load time (dispatch.cpp).
include(CheckCXXSourceCompiles)

set(cpu_dir "${CMAKE_CURRENT_LIST_DIR}")
add_library(cer_cpu STATIC
  "${cpu_dir}/dispatch.cpp" "${cpu_dir}/finish_rows.cpp" "${cpu_dir}/fold_tile.cpp" "${cpu_dir}/grad_tile.cpp"
  "${cpu_dir}/head_tile.cpp" "${cpu_dir}/merge_states.cpp" "${cpu_dir}/pool.cpp" "${cpu_dir}/teca.cpp")

# No contraction: a product and a sum that the compiler fuses behind our back round differently on every instruction set.
set(cpu_flags -O3 -ffp-contract=off -Wall -Wextra)

function(add_isa name)
  add_library(cer_cpu_${name} OBJECT "${cpu_dir}/kernels.cpp")
  target_include_directories(cer_cpu_${name} PRIVATE "${cpu_dir}/..")
  target_compile_definitions(cer_cpu_${name} PRIVATE CER_ISA=${name})
  target_compile_options(cer_cpu_${name} PRIVATE ${cpu_flags} ${ARGN})
  target_sources(cer_cpu PRIVATE $<TARGET_OBJECTS:cer_cpu_${name}>)
  target_compile_definitions(cer_cpu PRIVATE CER_HAS_ISA_${name})
endfunction()

# An instruction set that this compiler does not know is left out: dispatch.cpp lists those that are there.
function(add_isa_if_known name)
  string(JOIN " " flags ${ARGN})
  set(CMAKE_REQUIRED_FLAGS "${flags}")
  check_cxx_source_compiles("int main() { return 0; }" CER_COMPILES_${name})
  if(CER_COMPILES_${name})
    add_isa(${name} ${ARGN})
  else()
    message(STATUS "cer_ext: this compiler does not know ${flags}: no kernels for ${name}")
  endif()
endfunction()

add_isa(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  add_isa_if_known(avx2 -march=x86-64-v3)
  add_isa_if_known(avx512 -march=x86-64-v4)
  add_isa_if_known(avx512bf16 -march=x86-64-v4 -mavx512bf16)
  add_isa_if_known(amxbf16 -march=x86-64-v4 -mavx512bf16 -mamx-tile -mamx-bf16)
endif()

target_include_directories(cer_cpu PUBLIC "${cpu_dir}/..")
target_compile_options(cer_cpu PRIVATE ${cpu_flags})
target_link_libraries(cer_cpu PUBLIC Threads::Threads)
