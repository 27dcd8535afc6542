// The memory bandwidth that a plain kernel reaches: every thread has eight independent 16-byte loads in
// flight, and the grid passes over the buffer once. ceiling_read sums what it reads, so that no load is
// optimised away; ceiling_copy writes it to another buffer.
#include "cuda/common/launch.h"
#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {
namespace {

constexpr int ceiling_threads = 512;
constexpr int unroll = 8;
// Two blocks of 512 threads an SM with eight loads each: 128 KB in flight, four times bandwidth * latency.
constexpr int blocks_per_sm = 2;

__global__ void __launch_bounds__(ceiling_threads, blocks_per_sm)
    ceiling_read_kernel(const __grid_constant__ CeilingReadParams params) {
    const auto* src = static_cast<const uint4*>(params.src);
    const int64_t count = params.bytes / 16, stride = int64_t{gridDim.x} * ceiling_threads * unroll;
    unsigned long long sum = 0;
    const auto add = [&](const uint4& v) {
        sum += (static_cast<unsigned long long>(v.y) << 32 | v.x) +
               (static_cast<unsigned long long>(v.w) << 32 | v.z);
    };
    for (int64_t base = int64_t{blockIdx.x} * ceiling_threads * unroll + threadIdx.x; base < count;
         base += stride) {
        uint4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * ceiling_threads;
            v[i] = index < count ? load_once(src + index) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < unroll; ++i) add(v[i]);
    }
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % warp_size == 0) atomic_add(static_cast<unsigned long long*>(params.sink), sum);
}

__global__ void __launch_bounds__(ceiling_threads, blocks_per_sm)
    ceiling_copy_kernel(const __grid_constant__ CeilingCopyParams params) {
    const auto* src = static_cast<const uint4*>(params.src);
    auto* out = static_cast<uint4*>(params.out);
    const int64_t count = params.bytes / 16, stride = int64_t{gridDim.x} * ceiling_threads * unroll;
    for (int64_t base = int64_t{blockIdx.x} * ceiling_threads * unroll + threadIdx.x; base < count;
         base += stride) {
        uint4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * ceiling_threads;
            if (index < count) v[i] = load_once(src + index);
        }
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
            const int64_t index = base + int64_t{i} * ceiling_threads;
            if (index < count) store(out + index, v[i]);
        }
    }
}

}  // namespace

// The checksum is added to the sink, not stored, so that a launch stays a single kernel.

void ceiling_read(const CeilingReadParams& params, const Stream& stream) {
    launch(ceiling_read_kernel, blocks_per_sm * device_limits().sm_count, ceiling_threads, 0, stream, params);
}

void ceiling_copy(const CeilingCopyParams& params, const Stream& stream) {
    launch(ceiling_copy_kernel, blocks_per_sm * device_limits().sm_count, ceiling_threads, 0, stream, params);
}

}  // namespace pykernels::cuda
