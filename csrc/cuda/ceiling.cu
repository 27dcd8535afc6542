// The memory's own speed, as plainly as it can be asked for: every thread has eight independent 16-byte loads
// under way, the grid walks the buffer once. ceiling_read sums what it reads (nothing may be dropped);
// ceiling_copy writes it elsewhere.
#include "cuda/common/launch.h"
#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {
namespace {

constexpr int threads = 512;
constexpr int unroll = 8;
// Two blocks of 512 threads an SM, eight loads each: 128 KB under way, four times what latency asks for.
constexpr int blocks_per_sm = 2;

__global__ void __launch_bounds__(threads, blocks_per_sm)
    ceiling_read_kernel(const __grid_constant__ CeilingReadParams params) {
    const auto* src = static_cast<const uint4*>(params.src);
    const int64_t count = params.bytes / 16, stride = int64_t{gridDim.x} * threads * unroll;
    unsigned long long sum = 0;
    const auto add = [&](const uint4& v) {
        sum += (static_cast<unsigned long long>(v.y) << 32 | v.x) +
               (static_cast<unsigned long long>(v.w) << 32 | v.z);
    };
    for (int64_t base = int64_t{blockIdx.x} * threads * unroll + threadIdx.x; base < count; base += stride) {
        uint4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * threads;
            v[i] = index < count ? load_once(src + index) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < unroll; ++i) add(v[i]);
    }
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % warp_size == 0) atomic_add(static_cast<unsigned long long*>(params.sink), sum);
}

__global__ void __launch_bounds__(threads, blocks_per_sm)
    ceiling_copy_kernel(const __grid_constant__ CeilingCopyParams params) {
    const auto* src = static_cast<const uint4*>(params.src);
    auto* out = static_cast<uint4*>(params.out);
    const int64_t count = params.bytes / 16, stride = int64_t{gridDim.x} * threads * unroll;
    for (int64_t base = int64_t{blockIdx.x} * threads * unroll + threadIdx.x; base < count; base += stride) {
        uint4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * threads;
            if (index < count) v[i] = load_once(src + index);
        }
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * threads;
            if (index < count) store(out + index, v[i]);
        }
    }
}

}  // namespace

// The sink is added to, not set: a launch must stay one kernel. Its value proves nothing but that bytes were
// read.
void ceiling_read(const CeilingReadParams& params, const Stream& stream) {
    launch(ceiling_read_kernel, blocks_per_sm * device_limits().sm_count, threads, 0, stream, params);
}

void ceiling_copy(const CeilingCopyParams& params, const Stream& stream) {
    launch(ceiling_copy_kernel, blocks_per_sm * device_limits().sm_count, threads, 0, stream, params);
}

}  // namespace pykernels::cuda
