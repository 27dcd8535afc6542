// Loads of ptx.cuh that a predicate leaves out: one instruction each, without a branch around it.
#pragma once

#include "cuda/common/ptx.cuh"

namespace pykernels::cuda {

#ifdef PYKERNELS_SIMT

inline void load_streamed_if(uint4& value, const uint4* pointer, bool loads, Site site = Site::here()) {
    if (loads) value = load_streamed(pointer, site);
}

inline void load_fresh_if(uint4& value, const uint4* pointer, bool loads, Site site = Site::here()) {
    if (loads) value = load_fresh(pointer, site);
}

#else

// @p ld.global.L1::no_allocate.L2::cache_hint (evict_first): load_streamed where `loads`; else `value` stays.
__device__ __forceinline__ void load_streamed_if(uint4& value, const uint4* pointer, bool loads) {
    asm volatile(
        "{\n"
        ".reg .pred loads;\n"
        "setp.ne.u32 loads, %6, 0;\n"
        "@loads ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n"
        "}"
        : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
        : "l"(pointer), "l"(evict_first_policy()), "r"(static_cast<uint32_t>(loads)));
}

// @p ld.global.cg: load_fresh where `loads`; else `value` stays.
__device__ __forceinline__ void load_fresh_if(uint4& value, const uint4* pointer, bool loads) {
    asm volatile(
        "{\n"
        ".reg .pred loads;\n"
        "setp.ne.u32 loads, %5, 0;\n"
        "@loads ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
        : "l"(pointer), "r"(static_cast<uint32_t>(loads)));
}

#endif

}  // namespace pykernels::cuda
