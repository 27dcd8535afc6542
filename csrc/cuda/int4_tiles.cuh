// The stages of the int4 GEMV's fast path (int4_gemv_fast.cuh): which K tiles a warp is assigned, x to int8
// slices in shared memory, the mainloop over K tiles, and the sum of a row pair's partials.
#pragma once

#include "cuda/common/int4_slices.cuh"
#include "cuda/int4_gemv_plan.h"
#include "params.h"

#include <type_traits>

namespace pykernels::cuda {

__device__ __forceinline__ int divide(int value, const Int4Divisor& by) {
    return by.inverse ? static_cast<int>(uint64_t{static_cast<uint32_t>(value)} * by.inverse >> 32) : value;
}

// Of unsigned type before the cast, so that the compiler divides it by a shift.
__device__ __forceinline__ int int4_lane() {
    return static_cast<int>(threadIdx.x % warp_size);
}

// The first scale and zero point of a row; zeros: null where all are 8.
template <class T>
struct Int4GroupRows {
    const T* scales;
    const uint8_t* zeros;
};

// The scales, or zero points, of a K tile's two chunks of 128 columns. Where a group is a chunk they are
// neighbours; else one serves both.
template <class Element>
__device__ __forceinline__ uint32_t int4_load_pair(const Element* row, int k_tile, int group_shift) {
    using Word = std::conditional_t<sizeof(Element) == 2, uint32_t, uint16_t>;
    if (group_shift == 0) return load(reinterpret_cast<const Word*>(row) + k_tile);
    const auto* bits =
        reinterpret_cast<const std::conditional_t<sizeof(Element) == 2, uint16_t, uint8_t>*>(row);
    return uint32_t{load(bits + (2 * k_tile >> group_shift))} * (sizeof(Element) == 2 ? 0x10001u : 0x101u);
}

// The row pairs of a block, and the work of a warp: items first_item to last_item - 1 of the block's. An item
// is one K tile of one row tile; they are numbered row tile by row tile.
struct Int4WarpItems {
    int begin, pairs, items, first_item, last_item, first_tile, first_k_tile;

    __device__ __forceinline__ Int4WarpItems(const Int4GemvFastPlan& plan, int block, int warp) {
        begin = block * plan.block_pairs + min(block, plan.longer_blocks);
        pairs = plan.block_pairs + (block < plan.longer_blocks);
        items = int4_row_tiles(pairs) * plan.k_tiles;
        first_item = first_of(plan, warp);
        last_item = first_of(plan, warp + 1);
        first_tile = divide(first_item, plan.by_k_tiles);
        first_k_tile = first_item - first_tile * plan.k_tiles;
    }
    // int4_first_item for a power of two of warps.
    __device__ __forceinline__ int first_of(const Int4GemvFastPlan& plan, int warp) const {
        return items * warp >> plan.warps_log2;
    }
};

// Stores one of a thread's vectors of a sequence's x to shared memory as slices. `factors`, of the sequence's
// first chunk: [lane of four]{the scale of the lane's slice, what is added for the zero point}.
__device__ __forceinline__ void int4_store_x(const Floats8& x, uint32_t column, int batch,
                                             unsigned char* x_shared, float2* factors) {
    const Int4Slices slices(x);
    const int chunk = static_cast<int>(column / int4_chunk) * batch,
              t = static_cast<int>(column % int4_chunk / 32),
              word = static_cast<int>(column % 32 / vector_elements);
    unsigned char* to = x_shared + chunk * int4_slices_bytes;
#pragma unroll
    for (int slice = 0; slice < int4_slices; ++slice) {
        const uint2 words = slices.words[slice];
        store(reinterpret_cast<uint32_t*>(to + int4_slice_offset(slice, t, word, 0)), words.x);
        store(reinterpret_cast<uint32_t*>(to + int4_slice_offset(slice, t, word, 1)), words.y);
    }
    if (column % int4_chunk == 0) {
        auto* chunk_factors = reinterpret_cast<float4*>(factors + chunk * 4);
        const Int4ChunkFactors& from = slices.factors;
        store(chunk_factors, make_float4(from.slice[0], 0.0f, from.slice[1], 0.0f));
        store(chunk_factors + 1, make_float4(from.slice[2], 0.0f, 0.0f, -8.0f * from.sum));
    }
}

// The regions of shared memory, as the plan (int4_gemv_plan.h) lays them out.
struct Int4SharedMemory {
    float *sums, *squares;
    float2* factors;
    unsigned char* x;

    __device__ __forceinline__ Int4SharedMemory(unsigned char* shared, const Int4GemvFastPlan& plan)
        : sums(reinterpret_cast<float*>(shared + plan.sums_offset)),
          squares(reinterpret_cast<float*>(shared + plan.squares_offset)),
          factors(reinterpret_cast<float2*>(shared + plan.factors_offset)),
          x(shared + plan.x_offset) {}
};

// The mainloop: multiplies a warp's items. The partial sums of its part of each row tile go to shared memory,
// [partial][row][sequence][lane of four]. `copies` fills `stages` with the warp's K tiles in order, one for
// each that has been consumed. groups(row tile, row pair of the tile, side) returns a row's scales and zero
// points. `before`: K tiles of the row before the block's.
template <class T, int sequences, class Copies, class Groups>
__device__ __forceinline__ void int4_multiply_items(const Int4GemvFastPlan& plan, const Int4WarpItems& work,
                                                    int batch, const Int4SharedMemory& shared,
                                                    const unsigned char* stages, Copies& copies, int before,
                                                    const Groups& groups) {
    const int warp = static_cast<int>(threadIdx.x / warp_size), lane = int4_lane();
    const int g = lane / 4, t = lane % 4;
    float* const sums = shared.sums;
    const unsigned char* const lane_x = shared.x + min(g, 2 * int4_slices - 1) * 64 + t * 16;
    const float2* const lane_factors = shared.factors + t;
    const int lane_row = g * int4_k_tile_bytes + t * 16, swizzle = g % 2 * 64;
    Int4GroupRows<T> rows_of[2] = {};
    float eighths[2][2] = {{1, 1}, {1, 1}};  // zero points / 8 of both sides' chunks
    float acc[2][sequences] = {};
    int tile = work.first_tile, k_tile = work.first_k_tile, stage = 0;
#pragma unroll 1
    for (int item = work.first_item; item < work.last_item; ++item) {
        // --- scales and zero points, where they are not copied with the weights
        uint32_t scales[2];
        if (plan.zeros || plan.group_shift != 0) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                Int4GroupRows<T>& from = rows_of[side];
                if (item == work.first_item || k_tile == 0) from = groups(tile, g, side);
                scales[side] = int4_load_pair(from.scales, before + k_tile, plan.group_shift);
                const uint32_t zeros =
                    from.zeros ? int4_load_pair(from.zeros, before + k_tile, plan.group_shift) : 0x808u;
                eighths[side][0] = 0.125f * static_cast<float>(zeros & 0xffu);
                eighths[side][1] = 0.125f * static_cast<float>(zeros >> 8);
            }
        }

        // --- wait for the stage, refill the one before it
        async_wait<Copies::n_stages - 2>();
        warp_barrier();  // the copies of all lanes have landed, and all lanes have read the stage refilled
                         // next
        copies.copy_next();
        const unsigned char* rows_shared = stages + stage * int4_gemv_fast_stage_bytes;
        if (plan.group_shift == 0) {
            const uint32_t* copied =
                reinterpret_cast<const uint32_t*>(rows_shared + int4_tile_rows * int4_k_tile_bytes) + g;
            scales[0] = load(copied);
            scales[1] = load(copied + int4_tile_pairs);
        }

        // --- integer MMA of both chunks
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int chunk = (2 * k_tile + i) * batch;
            const uint4* row = reinterpret_cast<const uint4*>(rows_shared + lane_row + (i * 64 ^ swizzle));
            const uint4 rows[2] = {load(row), load(row + int4_tile_pairs * int4_k_tile_bytes / 16)};
#pragma unroll
            for (int b = 0; b < sequences; ++b) {
                if (b > 0 && b >= batch) break;
                const uint4 slices =
                    load(reinterpret_cast<const uint4*>(lane_x + (chunk + b) * int4_slices_bytes));
                const float2 factor = load(lane_factors + (chunk + b) * 4);
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const auto sum = static_cast<float>(int4_multiply_slices(rows[side], slices));
                    // factor.y is -8 times the sum of x in one lane of four, 0 in the others
                    acc[side][b] += (i == 0 ? unpack(scales[side], T{}).x : unpack(scales[side], T{}).y) *
                                    fma_float(sum, factor.x, factor.y * eighths[side][i]);
                }
            }
        }
        if (++stage == Copies::n_stages) stage = 0;

        // --- store the partial sums of the row tile
        if (++k_tile == plan.k_tiles || item + 1 == work.last_item) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                // [row][sequence][lane of four]
                const int row = (warp + tile) * int4_tile_rows + side * int4_tile_pairs + g;
#pragma unroll
                for (int b = 0; b < sequences; ++b) {
                    if (b > 0 && b >= batch) break;
                    store(sums + (row * batch + b) * 4 + t, acc[side][b]);
                    acc[side][b] = 0;
                }
            }
            k_tile = 0;
            ++tile;
        }
    }
}

// 1 / sqrt(mean(x^2) + eps) of a sequence. `squares`: the sum of squares of every warp.
__device__ __forceinline__ float int4_norm_scale(const float* squares, int warps, int width, float eps) {
    const float4* vectors = reinterpret_cast<const float4*>(squares);
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < warps / 4; ++w) {
        const float4 four = load(vectors + w);
        sum += (four.x + four.y) + (four.z + four.w);
    }
    return reciprocal_sqrt(sum / static_cast<float>(width) + eps);
}

// The sums of both rows of a row pair, for one sequence: adds the partials of the warps that have items of
// its row tile (int4_warp_of). 2^finish_lanes_log2 lanes share the partials. All lanes of the warp call.
__device__ __forceinline__ float2 int4_pair_sums(const Int4GemvFastPlan& plan, const Int4WarpItems& work,
                                                 const float* sums, int cluster, int pair, int b, int batch) {
    const int finish_lanes = 1 << plan.finish_lanes_log2, lane = int4_lane();
    const Int4Divisor& by_items = plan.by_items[cluster < plan.longer_blocks];
    const int tile = pair / int4_tile_pairs;
    const int begin = divide((tile * plan.k_tiles + 1) * plan.warps - 1, by_items),
              end = divide((tile + 1) * plan.k_tiles * plan.warps - 1, by_items);
    float sum_a = 0, sum_b = 0;
#pragma unroll 1
    for (int w = begin + (lane & (finish_lanes - 1)); w <= end; w += finish_lanes) {
        // With fewer items than warps, some warps have none.
        if (work.items < plan.warps && work.first_of(plan, w) == work.first_of(plan, w + 1)) continue;
        const float* partial =
            sums + (((w + tile) * int4_tile_rows + pair % int4_tile_pairs) * batch + b) * 4;
        const float4 a = load(reinterpret_cast<const float4*>(partial)),
                     second = load(reinterpret_cast<const float4*>(partial + int4_tile_pairs * batch * 4));
        sum_a += (a.x + a.y) + (a.z + a.w);
        sum_b += (second.x + second.y) + (second.z + second.w);
    }
#pragma unroll 1
    for (int mask = finish_lanes / 2; mask > 0; mask /= 2) {
        sum_a += shuffle_xor(sum_a, mask);
        sum_b += shuffle_xor(sum_b, mask);
    }
    return make_float2(sum_a, sum_b);
}

}  // namespace pykernels::cuda
