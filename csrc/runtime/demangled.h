// A kernel's name as its source has it.
#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <string>

namespace pykernels {

// Names that are not mangled (extern "C", Triton's) stay: "a" is a kernel's name, and the ABI's word for
// signed char.
inline std::string demangled(const std::string& name) {
    if (name.compare(0, 2, "_Z") != 0) return name;
    int status = 0;
    char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    if (text == nullptr) return name;
    std::string result = text;
    std::free(text);
    return result;
}

}  // namespace pykernels
