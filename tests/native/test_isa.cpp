// A build whose kernels this CPU lacks, as a build in place is on another machine: isa.cpp, compiled as for a
// CPU that is not x86, with the kernels of AVX2 and AVX-512 alone.
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/isa_names.h"
#include "ops.h"

using namespace pykernels;

int main() {
    CHECK(cpu::supported_isa_names().empty(), "%s", cpu::supported_isa_names()[0].c_str());
    std::string message;
    try {
        cpu::current_isa();
    } catch (const std::invalid_argument& error) {
        message = error.what();
    }
    CHECK(message.find("for avx2, avx512, which this CPU lacks") != std::string::npos, "%s", message.c_str());
    return test::failed();
}
