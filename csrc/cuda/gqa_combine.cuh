// Combining the partials of one head's output, of warps, then of blocks: by their log-sum-exp
// (Flash-Decoding), or, where the maximum is unified, by adding them.
#pragma once

#include "cuda/gqa_tile.cuh"

namespace pykernels::cuda::gqa {

// Four dimensions of one head's output.
struct Item {
    int head, dim;
    __device__ __forceinline__ Item(int index, int head_dim)
        : head(index * 4 / head_dim), dim(index * 4 % head_dim) {}
};

// The combined partials of an item. weight: the maximum, the sum of exponentials, two unused.
template <class Softmax>
struct Combined {
    float4 weight = {Softmax::unified ? 0 : lowest, 0, 0, 0};
    float4 out = {0, 0, 0, 0};

    // Adds the first `count` of n partials. The common maximum is taken first, so that the factors are
    // independent.
    template <int n>
    __device__ __forceinline__ void add(const float4 (&weights)[n], const float4 (&outs)[n], int count) {
        if constexpr (Softmax::unified) {
#pragma unroll
            for (int i = 0; i < n; ++i) add_one(weights[i].y, outs[i]);  // zeros from `count` on
            return;
        }
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

    // Adds the partials of the lanes that differ in the bits below `lanes`.
    __device__ __forceinline__ void add_lanes(int lanes) {
        if constexpr (!Softmax::unified) {
            float common = weight.x;
            for (int mask = 1; mask < lanes; mask *= 2) common = fmaxf(common, shuffle_xor(common, mask));
            scale(exp2_approximate(weight.x - common));
            weight.x = common;
        }
        for (int mask = 1; mask < lanes; mask *= 2) {
            weight.y += shuffle_xor(weight.y, mask);
            out.x += shuffle_xor(out.x, mask);
            out.y += shuffle_xor(out.y, mask);
            out.z += shuffle_xor(out.z, mask);
            out.w += shuffle_xor(out.w, mask);
        }
    }

    __device__ __forceinline__ void add_one(float sum, const float4& part) {
        weight.y += sum;
        out.x += part.x;
        out.y += part.y;
        out.z += part.z;
        out.w += part.w;
    }

    __device__ __forceinline__ void scale(float factor) {
        weight.y *= factor;
        out.x *= factor;
        out.y *= factor;
        out.z *= factor;
        out.w *= factor;
    }

    // Writes the partial to a slot of global memory, for a reducing block.
    __device__ __forceinline__ void send(float* slot) const {
        store_flagged(reinterpret_cast<float4*>(slot), out);
        // All 32 bytes of the sector: a partially written sector would first be read from DRAM.
        store_flagged(reinterpret_cast<float4*>(slot + 4), weight);
    }

    // Polls `count` slots until they are written, adds their partials, and zeroes the slots for the next
    // launch.
    template <int n>
    __device__ __forceinline__ void receive(float* slot, int64_t slot_step, int count) {
        float4 weights[n] = {}, outs[n] = {};  // slots from `count` on contribute 0 * 0
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

// The partials that the blocks of a cluster push to each other. Each block combines an equal number of
// consecutive items, the last ones fewer or none, and receives every block's partials of them.
struct PushedPartials {
    Mbarrier* arrived;
    float4* outs;     // [block][item of this block's part]
    float2* weights;  // likewise: the maximum, the sum of exponentials
    int slots, part;  // partials that this block receives, items of a block

    // `memory`: gqa_pushed_bytes(room) of shared memory, at the same offset in all blocks; `room` >= slots.
    __device__ __forceinline__ PushedPartials(unsigned char* memory, int slots, int part, int room)
        : arrived(reinterpret_cast<Mbarrier*>(memory)),
          outs(reinterpret_cast<float4*>(memory + gqa_push_barrier_bytes)),
          weights(reinterpret_cast<float2*>(outs + room)),
          slots(slots),
          part(part) {}

    // Whole warps call; one thread initialises the mbarrier. Other blocks may push after the cluster barrier.
    __device__ __forceinline__ void expect() const {
        if (threadIdx.x == 0) {
            barrier_init(arrived, 1);
            barriers_ready();
        }
        warp_barrier();  // not needed for one thread's order, but racecheck warns without it
        if (threadIdx.x == 0) barrier_expect(arrived, static_cast<uint32_t>(slots * gqa_partial_bytes));
    }

    // Pushes block `block`'s partial to the block that combines the item.
    template <class Softmax>
    __device__ __forceinline__ void send(const Combined<Softmax>& partial, int item, int block) const {
        const int reducer = item / part, index = block * part + item - reducer * part;
        const ClusterAddress barrier = remote_address(reducer, arrived);
        push(remote_address(reducer, outs + index), partial.out, barrier);
        push(remote_address(reducer, weights + index), make_float2(partial.weight.x, partial.weight.y),
             barrier);
    }

    // Writes a partial where block `block` would have pushed it: in this block's own memory, after all pushes
    // have arrived. `item` counts within this block's part.
    template <class Softmax>
    __device__ __forceinline__ void keep(const Combined<Softmax>& partial, int item, int block) const {
        store(outs + block * part + item, partial.out);
        store(weights + block * part + item, make_float2(partial.weight.x, partial.weight.y));
    }

    // Valid after wait_for_pushes(arrived). `item` counts within this block's part.
    template <class Softmax>
    __device__ __forceinline__ void take(Combined<Softmax>& partial, int block, int item) const {
        const float2 weight = load(weights + block * part + item);
        partial.weight = make_float4(weight.x, weight.y, 0, 0);
        partial.out = load(outs + block * part + item);
    }
};

}  // namespace pykernels::cuda::gqa
