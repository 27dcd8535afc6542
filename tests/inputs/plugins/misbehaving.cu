// Attention kernels that do wrong, each in its own way. For a GPU (tests/gpu/test_plugins_cuda.py).
#include <cuda_bf16.h>

// launchtax: op=gqa_decode grid=1 block=1
extern "C" __global__ void overruns(__nv_bfloat16* out, int batch, int n_heads, int head_dim) {
    out[batch * n_heads * head_dim + 3] = __float2bfloat16(1.0f);
}

// launchtax: op=gqa_decode grid=1 block=1
extern "C" __global__ void faults(__nv_bfloat16* out) {
    out[1ll << 40] = __float2bfloat16(1.0f);
}

// launchtax: op=gqa_decode grid=1 block=1
extern "C" __global__ void hangs(const int* kv_len, __nv_bfloat16* out) {
    while (*reinterpret_cast<const volatile int*>(kv_len) >= 0) {
    }
    out[0] = __float2bfloat16(1.0f);
}

// launchtax: op=gqa_decode grid=1 block=1
extern "C" __global__ void writes_nothing(__nv_bfloat16* out) {}
