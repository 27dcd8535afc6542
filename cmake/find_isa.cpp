// Prints the best instruction set of this machine's CPU; linked with csrc/cpu/isa.cpp.
#include <cstdio>
#include <initializer_list>

#include "ops.h"

int main() {
    using pykernels::cpu::Isa;
    Isa best = Isa::generic;
    for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
        if (pykernels::cpu::isa_supported(isa)) best = isa;
    }
    std::fputs(pykernels::cpu::isa_name(best), stdout);
}
