// Is vpdpbusd (AVX512-VNNI) used? Kernels ask, so nothing else is in this file.
#pragma once

namespace pykernels::cpu {

bool uses_vnni();

}  // namespace pykernels::cpu
