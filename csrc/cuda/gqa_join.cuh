// How the shares of one head's output, of warps, blocks or clusters, become one: by their log-sum-exp.
#pragma once

#include "cuda/gqa_tile.cuh"

namespace pykernels::cuda::gqa {

// Four dimensions of one head's output.
struct Item {
    int head, dim;
    __device__ __forceinline__ Item(int index, int head_dim)
        : head(index * 4 / head_dim), dim(index * 4 % head_dim) {}
};

// Shares of an item, joined. weight: the maximum, the sum of exponentials, two that mean nothing.
struct Joined {
    float4 weight = {lowest, 0, 0, 0};
    float4 out = {0, 0, 0, 0};

    // The first `count` of n more shares. The common maximum comes first, so that the factors do not wait for
    // one another.
    template <int n>
    __device__ __forceinline__ void add(const float4 (&weights)[n], const float4 (&outs)[n], int count) {
        float common = weight.x;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            if (i < count) common = fmaxf(common, weights[i].x);
        }
        scale(exp2_approximate(weight.x - common));
        weight.x = common;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const float factor = i < count ? exp2_approximate(weights[i].x - common) : 0.0f;
            weight.y += weights[i].y * factor;
            out.x += outs[i].x * factor;
            out.y += outs[i].y * factor;
            out.z += outs[i].z * factor;
            out.w += outs[i].w * factor;
        }
    }

    // The shares of lanes that differ in the bits below `lanes`.
    __device__ __forceinline__ void add_lanes(int lanes) {
        float common = weight.x;
        for (int mask = 1; mask < lanes; mask *= 2) common = fmaxf(common, shuffle_xor(common, mask));
        scale(exp2_approximate(weight.x - common));
        weight.x = common;
        for (int mask = 1; mask < lanes; mask *= 2) {
            weight.y += shuffle_xor(weight.y, mask);
            out.x += shuffle_xor(out.x, mask);
            out.y += shuffle_xor(out.y, mask);
            out.z += shuffle_xor(out.z, mask);
            out.w += shuffle_xor(out.w, mask);
        }
    }

    __device__ __forceinline__ void scale(float factor) {
        weight.y *= factor;
        out.x *= factor;
        out.y *= factor;
        out.z *= factor;
        out.w *= factor;
    }

    __device__ __forceinline__ void keep(float* row, int dim, int head_dim) const {
        store(reinterpret_cast<float4*>(row + dim), out);
        if (dim == 0) store(reinterpret_cast<float4*>(row + head_dim), weight);
    }

    // To another block, and from `count` of them at once; zero when it has been read, as the next launch
    // wants to find it.
    __device__ __forceinline__ void send(float* slot) const {
        store_flagged(reinterpret_cast<float4*>(slot), out);
        // All 32 bytes of the sector: one that is written in part would first be read from memory.
        store_flagged(reinterpret_cast<float4*>(slot + 4), weight);
    }

    template <int n>
    __device__ __forceinline__ void receive(float* slot, int64_t slot_step, int count) {
        float4 weights[n] = {}, outs[n] = {};  // what is not there counts 0 times 0
        uint32_t awaited = count < n ? (1u << count) - 1 : (1u << n) - 1;
        while (awaited != 0) {
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if ((awaited >> i & 1) == 0) continue;
                outs[i] = load_flagged(reinterpret_cast<const float4*>(slot + i * slot_step));
                weights[i] = load_flagged(reinterpret_cast<const float4*>(slot + i * slot_step + 4));
            }
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if ((awaited >> i & 1) == 0) continue;
                if (is_written(outs[i]) && is_written(weights[i])) awaited &= ~(1u << i);
            }
        }
#pragma unroll
        for (int i = 0; i < n; ++i) {
            if (i >= count) continue;
            clear_flagged(reinterpret_cast<float4*>(slot + i * slot_step));
            clear_flagged(reinterpret_cast<float4*>(slot + i * slot_step + 4));
        }
        add(weights, outs, count);
    }

    template <class T>
    __device__ __forceinline__ void finish(T* to) const {
        const float inverse = 1.0f / weight.y;
        store(reinterpret_cast<uint2*>(to), make_uint2(pack<T>(out.x * inverse, out.y * inverse),
                                                       pack<T>(out.z * inverse, out.w * inverse)));
    }
};

}  // namespace pykernels::cuda::gqa
