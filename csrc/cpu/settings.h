// Environment variables of the kernel library.
#pragma once

namespace pykernels::cpu {

// The variable's value, or 0 where it is unset or empty. Throws std::invalid_argument, naming the variable,
// its value and what is allowed, where it is no integer in [low, high].
int environment_integer(const char* name, int low, int high);

}  // namespace pykernels::cpu
