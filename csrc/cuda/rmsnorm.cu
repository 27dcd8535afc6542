// rmsnorm: out = x / sqrt(mean(x^2) + eps) * (weight + norm_offset) + residual. One block per row. Limit:
// latency, so a thread keeps its part of x in registers between the sum and the product.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

constexpr int rmsnorm_threads = 512;
// Vectors of x a thread keeps in registers: all of rows up to 8,192 elements. The rest of a longer row is
// read twice.
constexpr int kept = 2;

template <class T>
__global__ void __launch_bounds__(rmsnorm_threads)
    rmsnorm_kernel(const __grid_constant__ RmsnormParams params) {
    Timestamps timestamps;
    auto* scratch = reinterpret_cast<float*>(shared_memory());
    const T* weight = static_cast<const T*>(params.weight);
    const T* x = static_cast<const T*>(params.x) + int64_t{blockIdx.x} * params.hidden;
    T* out = static_cast<T*>(params.out) + int64_t{blockIdx.x} * params.hidden;
    const T* residual = static_cast<const T*>(params.residual);
    if (residual) residual += int64_t{blockIdx.x} * params.hidden;
    constexpr int step = rmsnorm_threads * vector_elements;
    const int first = static_cast<int>(threadIdx.x) * vector_elements;

    // --- prefetch the weight, a constant
    uint4 weights[kept];
#pragma unroll
    for (int k = 0; k < kept; ++k) {
        if (first + k * step < params.hidden)
            weights[k] = load(reinterpret_cast<const uint4*>(weight + first + k * step));
    }
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();

    // --- sum of squares
    Floats8 kept_x[kept];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kept; ++k) {
        if (first + k * step < params.hidden) {
            kept_x[k] = load8(x + first + k * step);
            squares = dot8(kept_x[k], kept_x[k], squares);
        }
    }
    for (int i = first + kept * step; i < params.hidden; i += step) {
        const Floats8 v = load8(x + i);
        squares = dot8(v, v, squares);
    }
    const float scale =
        reciprocal_sqrt(block_sum(squares, scratch) / static_cast<float>(params.hidden) + params.eps);

    // --- normalise
    const auto finish = [&](Floats8 v, const Floats8& w, int i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = v[j] * scale * (w[j] + params.norm_offset);
        if (residual) {
            const Floats8 r = load8(residual + i);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] += r[j];
        }
        store8(out + i, v);
    };
#pragma unroll
    for (int k = 0; k < kept; ++k) {
        if (first + k * step < params.hidden) finish(kept_x[k], unpack8<T>(weights[k]), first + k * step);
    }
    for (int i = first + kept * step; i < params.hidden; i += step)
        finish(load8(x + i), load8(weight + i), i);
}

// For any width and alignment.

template <class T>
__global__ void __launch_bounds__(rmsnorm_threads)
    rmsnorm_plain_kernel(const __grid_constant__ RmsnormParams params) {
    Timestamps timestamps;
    auto* scratch = reinterpret_cast<float*>(shared_memory());
    const T* weight = static_cast<const T*>(params.weight);
    const T* x = static_cast<const T*>(params.x) + int64_t{blockIdx.x} * params.hidden;
    T* out = static_cast<T*>(params.out) + int64_t{blockIdx.x} * params.hidden;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    float squares = 0;
    for (int i = static_cast<int>(threadIdx.x); i < params.hidden; i += rmsnorm_threads)
        squares += load1(x + i) * load1(x + i);
    const float scale =
        reciprocal_sqrt(block_sum(squares, scratch) / static_cast<float>(params.hidden) + params.eps);
    for (int i = static_cast<int>(threadIdx.x); i < params.hidden; i += rmsnorm_threads) {
        float value = load1(x + i) * scale * (load1(weight + i) + params.norm_offset);
        if (params.residual)
            value += load1(static_cast<const T*>(params.residual) + int64_t{blockIdx.x} * params.hidden + i);
        store1(out + i, value);
    }
}

}  // namespace

void rmsnorm(const RmsnormParams& params, const Stream& stream) {
    const bool vectors = are_vectors(params.hidden, params.x, params.weight, params.residual, params.out);
    with_type("rmsnorm", params.dtype, [&](auto type) {
        using T = decltype(type);
        launch(vectors ? rmsnorm_kernel<T> : rmsnorm_plain_kernel<T>, params.batch, rmsnorm_threads,
               rmsnorm_threads / warp_size * sizeof(float), stream, params);
    });
}

}  // namespace pykernels::cuda
