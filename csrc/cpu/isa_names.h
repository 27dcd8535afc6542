// The instruction sets by the names that PYKERNELS_CPU_ISA takes: those of ops.h, and avx512_vnni, the
// kernels of avx512 with vpdpbusd (cpu/vnni.h).
#pragma once

#include <string>
#include <vector>

namespace pykernels::cpu {

std::vector<std::string> supported_isa_names();  // that this CPU has, from the least to the best
const char* current_isa_name();
void set_isa_by_name(const std::string& name);  // throws std::invalid_argument where the CPU lacks it

}  // namespace pykernels::cpu
