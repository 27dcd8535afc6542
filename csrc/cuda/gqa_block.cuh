// Parts of what a block of gqa_decode does: its work, q and the warps' partials in shared memory, and a head
// group that is computed again online where a unified maximum left the safe range.
#pragma once

#include "cuda/gqa_any_dim.cuh"
#include "cuda/gqa_combine.cuh"
#include "cuda/gqa_decode_plan.h"
#include "cuda/gqa_stream.cuh"

namespace pykernels::cuda::gqa {

// The work of a block: a head group, and a split of its KV axis.
struct BlockWork {
    int group, split, sequence, kv_head, first_head, n_heads;
    template <class Dims>
    __device__ __forceinline__ BlockWork(const GqaDecodeParams& params, const GqaPlan& plan, int block,
                                         const Dims& dims) {
        group = block / plan.splits;
        split = block - group * plan.splits;
        const int cell = dims.cell(plan, group);  // its slices of V are neighbours
        if (Dims::one_head) {
            sequence = cell / params.n_kv_heads;
            kv_head = first_head = cell - sequence * params.n_kv_heads;
            n_heads = 1;
            return;
        }
        const int head_tile = plan.head_tiles == 1 ? 0 : cell % plan.head_tiles;
        const int cache = plan.head_tiles == 1 ? cell : cell / plan.head_tiles;
        sequence = cache / params.n_kv_heads;
        kv_head = cache - sequence * params.n_kv_heads;
        first_head = kv_head * plan.group_size + head_tile * plan.heads;
        n_heads = min(plan.heads, plan.group_size - head_tile * plan.heads);
    }
};

// Issues the heads of q to shared memory, 0 past the last head and head_dim.
template <class T, class Dims>
__device__ __forceinline__ void fetch_q(const GqaDecodeParams& params, const BlockWork& work,
                                        const Dims& dims) {
    constexpr int q_vectors = Dims::key_max / vector_elements;
    static_assert(gqa_tile_heads * q_vectors <= gqa_threads);
    const int i = static_cast<int>(threadIdx.x), head = i / q_vectors, d = i % q_vectors * vector_elements;
    if (head < gqa_tile_heads) {
        T* to = reinterpret_cast<T*>(shared_memory()) + head * gqa_q_row_elements(Dims::key_max) + d;
        if (head < work.n_heads && (Dims::exact || d < dims.head_dim)) {
            const int64_t q_row = int64_t{work.sequence * params.n_heads + work.first_head + head};
            async_copy16(to, static_cast<const T*>(params.q) + q_row * dims.head_dim + d);
        } else {
            store(reinterpret_cast<uint4*>(to), make_uint4(0, 0, 0, 0));
        }
    }
    async_commit();
}

// This lane's part of q in shared memory: head g, the dimensions of its part of K.
template <class T, class Dims>
__device__ __forceinline__ const T* own_q() {
    return reinterpret_cast<const T*>(shared_memory()) + lane_group() * gqa_q_row_elements(Dims::key_max) +
           lane_in_group() * vector_elements;
}

// The partials of the warps in shared memory, over q: [warp][head][row].
template <class Stream, int value_max, class Softmax>
__device__ __forceinline__ void store_rows(const Partial<value_max, Softmax>& partial) {
    constexpr int row = gqa_row_floats(value_max);
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    float* results = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = partial.sum[h];
#pragma unroll
        for (int mask = 4; mask < warp_size; mask *= 2) sum += shuffle_xor(sum, mask);
        float* warp_row = results + (warp * gqa_tile_heads + 2 * lane_in_group() + h) * row;
#pragma unroll
        for (int j = 0; j < value_max / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                store(reinterpret_cast<float2*>(warp_row + Stream::value_dim(j) + p * 2),
                      make_float2(partial.out[j][p][h], partial.out[j][p][2 + h]));
            }
        }
        if (lane_group() == 0)
            store(reinterpret_cast<float4*>(warp_row + value_max),
                  make_float4(partial.maximum[h], sum, 0, 0));
    }
}

// An item of the rows that store_rows() wrote.
template <int value_max, class Softmax>
__device__ __forceinline__ Combined<Softmax> combine_rows(const Item& item) {
    constexpr int row = gqa_row_floats(value_max);
    const float* results = reinterpret_cast<const float*>(shared_memory());
    float4 weights[gqa_warps], outs[gqa_warps];
#pragma unroll
    for (int w = 0; w < gqa_warps; ++w) {
        const float* warp_row = results + (w * gqa_tile_heads + item.head) * row;
        weights[w] = load(reinterpret_cast<const float4*>(warp_row + value_max));
        outs[w] = load(reinterpret_cast<const float4*>(warp_row + item.dim));
    }
    Combined<Softmax> combined;
    combined.add(weights, outs, gqa_warps);
    return combined;
}

// Whose arithmetic is that of KvStream, in the same order, without its ring in shared memory.
template <class Dims>
struct OneTile : Dims {
    static constexpr int tiles = 1;
    using Dims::Dims;
};
template <class T, class Dims, template <class, class> class KvStream>
struct Recomputing {
    using StreamDims = Dims;
    using Stream = KvStream<T, Dims>;
};
template <class T, class Dims>
struct Recomputing<T, Dims, BulkStream> {
    using StreamDims = OneTile<Dims>;
    using Stream = GuardedStream<T, StreamDims>;
};

// The block's head group online, the first n_splits splits one after another, each with the operations of the
// block that had it: keep(split, partial) is given what that block combined of this thread's item. All
// threads of the block call.
template <class T, class Dims, template <class, class> class KvStream, class Keep, class Stamps>
__device__ __forceinline__ void recompute_online(const GqaDecodeParams& params, const GqaPlan& plan,
                                                 const BlockWork& work, const Tiles<T>& tiles, int n_splits,
                                                 const Keep& keep, Stamps& timestamps) {
    using Stream = typename Recomputing<T, Dims, KvStream>::Stream;
    const typename Recomputing<T, Dims, KvStream>::StreamDims dims(
        params, plan, static_cast<int>(blockIdx.x) / plan.splits);
    const int thread = static_cast<int>(threadIdx.x), items = gqa_items(work.n_heads, dims.n_values);
    for (int split = 0; split < n_splits; ++split) {
        block_barrier();  // the rows before, which q overwrites, have been read
        fetch_q<T>(params, work, dims);
        Tiles<T> of_split = tiles;
        of_split.first_key += (split - work.split) * gqa_tile_keys;
        Stream stream(of_split, plan, dims);
        stream.start_again();
        async_wait<0>();
        block_barrier();  // q is in shared memory
        Partial<Dims::value_max, OnlineSoftmax> partial;
        stream.run(own_q<T, Dims>(), params.scale * log2_e, partial, timestamps);
        block_barrier();  // all warps have read q
        store_rows<Stream>(partial);
        block_barrier();  // the partials of all warps are in shared memory
        if (thread < items)
            keep(split, combine_rows<Dims::value_max, OnlineSoftmax>(Item(thread, dims.n_values)));
    }
    block_barrier();  // what was kept can be read
}

}  // namespace pykernels::cuda::gqa
