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

// What the blocks of a cluster push to one another. Each joins an equal part of the items, neighbouring ones,
// of which it gets every block's shares.
struct PushedShares {
    TransactionBarrier* all_here;
    float4* outs;     // [block][item of this block's part]
    float2* weights;  // likewise: the maximum, the sum of exponentials
    int items, part;  // of the unit, of a block

    // `memory`: gqa_pushed_bytes(items) of shared memory, at the same place in all blocks.
    __device__ __forceinline__ PushedShares(unsigned char* memory, int items, int part)
        : all_here(reinterpret_cast<TransactionBarrier*>(memory)),
          outs(reinterpret_cast<float4*>(memory + gqa_push_barrier_bytes)),
          weights(reinterpret_cast<float2*>(outs + items)),
          items(items),
          part(part) {}

    // By whole warps; one thread does it. Others push once the cluster's barrier has shown it to them.
    __device__ __forceinline__ void expect() const {
        if (threadIdx.x == 0) {
            barrier_init(all_here, 1);
            barriers_ready();
        }
        warp_barrier();  // one thread's order needs none, but racecheck warns without
        if (threadIdx.x == 0) barrier_expect(all_here, static_cast<uint32_t>(items * gqa_share_bytes));
    }

    // The share of the cluster's block `block`, to the block that joins the item.
    __device__ __forceinline__ void send(const Joined& share, int item, int block) const {
        const int joiner = item / part, at = block * part + item - joiner * part;
        const ClusterPlace barrier = place_in(joiner, all_here);
        push(place_in(joiner, outs + at), share.out, barrier);
        push(place_in(joiner, weights + at), make_float2(share.weight.x, share.weight.y), barrier);
    }

    // After wait_for_pushes(all_here). item: of this block's part.
    __device__ __forceinline__ Joined share_of(int block, int item) const {
        const float2 weight = load(weights + block * part + item);
        Joined share;
        share.weight = make_float4(weight.x, weight.y, 0, 0);
        share.out = load(outs + block * part + item);
        return share;
    }
};

}  // namespace pykernels::cuda::gqa
