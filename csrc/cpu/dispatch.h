// The kernels of the instruction set in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/isa_kernels.h"

namespace cer::cpu {

// The best that processor and operating system offer, unless set_isa chose another.
const IsaKernels& active_kernels();

// Names of the compiled instruction sets, plainest first, and of those among them that this machine can run.
std::vector<std::string> compiled_isas();
std::vector<std::string> runnable_isas();

// For tests and benchmarks: run this one from now on. Returns the name of the one before.
// Throws std::invalid_argument for a name that is not in runnable_isas().
std::string set_isa(const std::string& name);

}  // namespace cer::cpu
