// Which compiled instruction set runs: chosen once from what processor and operating system offer.
//
// How csrc/cpu is built (every file: -std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -pthread):
//   fold_tile.cpp finish_rows.cpp grad_tile.cpp teca.cpp pool.cpp dispatch.cpp    once, no architecture flag
//   kernels.cpp    once per instruction set, everywhere:   -DCER_ISA=baseline
//                  and on x86-64:                          -DCER_ISA=avx2        -march=x86-64-v3
//                                                          -DCER_ISA=avx512      -march=x86-64-v4
//                                                          -DCER_ISA=avx512bf16  -march=x86-64-v4 -mavx512bf16
#include "cpu/dispatch.h"
