// The 16-bit float types as bit patterns: plain data, so that every instruction set may share them.
#pragma once

#include <cstdint>

namespace pykernels::cpu {

struct Bf16 {
    uint16_t bits;
};

struct Fp16 {
    uint16_t bits;
};

}  // namespace pykernels::cpu
