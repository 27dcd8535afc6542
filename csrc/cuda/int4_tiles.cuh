// What the int4 GEMVs that run in whole numbers do with their pieces (int4_gemv_fast.cuh says how): a
// block's share, x brought to shared memory, pieces multiplied, and the parts of a unit's sums added up.
#pragma once

#include "cuda/common/int4_slices.cuh"
#include "cuda/int4_gemv_plan.h"
#include "params.h"

#include <type_traits>

namespace pykernels::cuda {

__device__ __forceinline__ int divide(int value, const Int4Divisor& by) {
    return by.inverse ? static_cast<int>(uint64_t{static_cast<uint32_t>(value)} * by.inverse >> 32) : value;
}

// As a number that the compiler knows not to be negative: divided by a shift.
__device__ __forceinline__ int int4_lane() {
    return static_cast<int>(threadIdx.x % warp_size);
}

// Where a row's scales and zero points begin; zeros: null where all are 8.
template <class T>
struct Int4GroupRows {
    const T* scales;
    const uint8_t* zeros;
};

// A group's scales, or zero points, of a piece's two chunks of 128 columns: neighbours where a group is a
// chunk, else one for both.
template <class Element>
__device__ __forceinline__ uint32_t int4_load_pair(const Element* row, int piece, int group_shift) {
    using Word = std::conditional_t<sizeof(Element) == 2, uint32_t, uint16_t>;
    if (group_shift == 0) return load(reinterpret_cast<const Word*>(row) + piece);
    const auto* bits =
        reinterpret_cast<const std::conditional_t<sizeof(Element) == 2, uint16_t, uint8_t>*>(row);
    return uint32_t{load(bits + (2 * piece >> group_shift))} * (sizeof(Element) == 2 ? 0x10001u : 0x101u);
}

// What a block does: its units, and the shares of its warps.
struct Int4Share {
    int begin, units, items, first_item, last_item, first_tile, first_piece;

    __device__ __forceinline__ Int4Share(const Int4GemvFastPlan& plan, int block, int warp) {
        begin = block * plan.block_units + min(block, plan.longer_blocks);
        units = plan.block_units + (block < plan.longer_blocks);
        items = int4_tiles(units) * plan.pieces;
        first_item = first_of(plan, warp);
        last_item = first_of(plan, warp + 1);
        first_tile = divide(first_item, plan.by_pieces);
        first_piece = first_item - first_tile * plan.pieces;
    }
    // int4_first_item, where warps are a power of two.
    __device__ __forceinline__ int first_of(const Int4GemvFastPlan& plan, int warp) const {
        return items * warp >> plan.warps_log2;
    }
};

// One of a thread's vectors of a sequence's x to shared memory. `factors`: [lane of four]{of the sum, what is
// added}, of the sequence's first chunk.
__device__ __forceinline__ void int4_keep_x(const Floats8& x, uint32_t column, int batch,
                                            unsigned char* x_shared, float2* factors) {
    const Int4Digits digits(x);
    const int chunk = static_cast<int>(column / int4_chunk) * batch,
              t = static_cast<int>(column % int4_chunk / 32),
              word = static_cast<int>(column % 32 / vector_elements);
    unsigned char* to = x_shared + chunk * int4_digits_bytes;
#pragma unroll
    for (int digit = 0; digit < int4_digits; ++digit) {
        const uint2 words = digits.words[digit];
        store(reinterpret_cast<uint32_t*>(to + int4_digits_place(digit, t, word, 0)), words.x);
        store(reinterpret_cast<uint32_t*>(to + int4_digits_place(digit, t, word, 1)), words.y);
    }
    if (column % int4_chunk == 0) {
        auto* mine = reinterpret_cast<float4*>(factors + chunk * 4);
        const auto& of = digits.factors;
        store(mine, make_float4(of.digit[0], 0.0f, of.digit[1], 0.0f));
        store(mine + 1, make_float4(of.digit[2], 0.0f, 0.0f, -8.0f * of.sum));
    }
}

// Where in shared memory the parts of a plan (int4_gemv_plan.h) are.
struct Int4Places {
    float *sums, *squares;
    float2* factors;
    unsigned char* x;

    __device__ __forceinline__ Int4Places(unsigned char* shared, const Int4GemvFastPlan& plan)
        : sums(reinterpret_cast<float*>(shared + plan.sums_offset)),
          squares(reinterpret_cast<float*>(shared + plan.squares_offset)),
          factors(reinterpret_cast<float2*>(shared + plan.factors_offset)),
          x(shared + plan.x_offset) {}
};

// A warp's share of the block's pieces, multiplied: sums of its parts of tiles go to shared memory,
// [part][row][sequence][lane of four]. `copies` brings pieces in their order, one for each that was used up;
// they lie in `stages`. groups(tile, unit of the tile, side) says where the scales and zero points of a row
// begin.
template <class T, int sequences, class Copies, class Groups>
__device__ __forceinline__ void int4_multiply_share(const Int4GemvFastPlan& plan, const Int4Share& share,
                                                    int batch, const Int4Places& places,
                                                    const unsigned char* stages, Copies& copies,
                                                    const Groups& groups) {
    const int warp = static_cast<int>(threadIdx.x / warp_size), lane = int4_lane();
    const int g = lane / 4, t = lane % 4;
    float* const sums = places.sums;
    const unsigned char* const my_x = places.x + min(g, 2 * int4_digits - 1) * 64 + t * 16;
    const float2* const my_factors = places.factors + t;
    const int my_line = g * int4_piece_bytes + t * 16, swap = g % 2 * 64;
    Int4GroupRows<T> rows_of[2] = {};
    float eighths[2][2] = {{1, 1}, {1, 1}};  // zero points over 8, of both sides' chunks
    float acc[2][sequences] = {};
    int tile = share.first_tile, piece = share.first_piece, stage = 0;
#pragma unroll 1
    for (int item = share.first_item; item < share.last_item; ++item) {
        uint32_t scales[2];
        if (plan.zeros || plan.group_shift != 0) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                Int4GroupRows<T>& from = rows_of[side];
                if (item == share.first_item || piece == 0) from = groups(tile, g, side);
                scales[side] = int4_load_pair(from.scales, piece, plan.group_shift);
                const uint32_t zeros =
                    from.zeros ? int4_load_pair(from.zeros, piece, plan.group_shift) : 0x808u;
                eighths[side][0] = 0.125f * static_cast<float>(zeros & 0xffu);
                eighths[side][1] = 0.125f * static_cast<float>(zeros >> 8);
            }
        }
        async_wait<int4_gemv_fast_stages - 2>();
        warp_barrier();  // all lanes' copies have landed, and all have read the stage that is written next
        copies.copy_next();
        const unsigned char* lines = stages + stage * int4_gemv_fast_stage_bytes;
        if (plan.group_shift == 0) {
            const uint32_t* copied =
                reinterpret_cast<const uint32_t*>(lines + int4_tile_rows * int4_piece_bytes) + g;
            scales[0] = load(copied);
            scales[1] = load(copied + int4_tile_units);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int chunk = (2 * piece + i) * batch;
            const uint4* line = reinterpret_cast<const uint4*>(lines + my_line + (i * 64 ^ swap));
            const uint4 rows[2] = {load(line), load(line + int4_tile_units * int4_piece_bytes / 16)};
#pragma unroll
            for (int b = 0; b < sequences; ++b) {
                if (b > 0 && b >= batch) break;
                const uint4 digits =
                    load(reinterpret_cast<const uint4*>(my_x + (chunk + b) * int4_digits_bytes));
                const float2 factor = load(my_factors + (chunk + b) * 4);
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const auto sum = static_cast<float>(int4_multiply_digits(rows[side], digits));
                    // factor.y is -8 times the sum of x, in one lane
                    acc[side][b] += (i == 0 ? unpack(scales[side], T{}).x : unpack(scales[side], T{}).y) *
                                    fma_float(sum, factor.x, factor.y * eighths[side][i]);
                }
            }
        }
        if (++stage == int4_gemv_fast_stages) stage = 0;
        if (++piece == plan.pieces || item + 1 == share.last_item) {  // this warp's part of the tile is done
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                // [row][sequence][lane of four]
                const int row = (warp + tile) * int4_tile_rows + side * int4_tile_units + g;
#pragma unroll
                for (int b = 0; b < sequences; ++b) {
                    if (b > 0 && b >= batch) break;
                    store(sums + (row * batch + b) * 4 + t, acc[side][b]);
                    acc[side][b] = 0;
                }
            }
            piece = 0;
            ++tile;
        }
    }
}

// Of a sequence: 1 / sqrt(mean(x^2) + eps), by which the norm divides. `squares` are those of every warp.
__device__ __forceinline__ float int4_norm_scale(const float* squares, int warps, int width, float eps) {
    const float4* mine = reinterpret_cast<const float4*>(squares);
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < warps / 4; ++w) {
        const float4 four = load(mine + w);
        sum += (four.x + four.y) + (four.z + four.w);
    }
    return reciprocal_sqrt(sum / static_cast<float>(width) + eps);
}

// The sums of both rows of a block's unit, for one sequence: the parts of the warps whose shares have some of
// its tile (int4_warp_of), each lane's of 2^finish_lanes_log2 some of them. All lanes of the warp call.
__device__ __forceinline__ float2 int4_unit_sums(const Int4GemvFastPlan& plan, const Int4Share& share,
                                                 const float* sums, int unit, int b, int batch) {
    const int finish_lanes = 1 << plan.finish_lanes_log2, lane = int4_lane();
    const Int4Divisor& by_items = plan.by_items[static_cast<int>(blockIdx.x) < plan.longer_blocks];
    const int of_tile = unit / int4_tile_units;
    const int begin = divide((of_tile * plan.pieces + 1) * plan.warps - 1, by_items),
              end = divide((of_tile + 1) * plan.pieces * plan.warps - 1, by_items);
    float sum_a = 0, sum_b = 0;
#pragma unroll 1
    for (int w = begin + (lane & (finish_lanes - 1)); w <= end; w += finish_lanes) {
        // Where there are fewer pieces than warps, some have none.
        if (share.items < plan.warps && share.first_of(plan, w) == share.first_of(plan, w + 1)) continue;
        const float* part =
            sums + (((w + of_tile) * int4_tile_rows + unit % int4_tile_units) * batch + b) * 4;
        const float4 a = load(reinterpret_cast<const float4*>(part)),
                     other = load(reinterpret_cast<const float4*>(part + int4_tile_units * batch * 4));
        sum_a += (a.x + a.y) + (a.z + a.w);
        sum_b += (other.x + other.y) + (other.z + other.w);
    }
#pragma unroll 1
    for (int mask = finish_lanes / 2; mask > 0; mask /= 2) {
        sum_a += shuffle_xor(sum_a, mask);
        sum_b += shuffle_xor(sum_b, mask);
    }
    return make_float2(sum_a, sum_b);
}

}  // namespace pykernels::cuda
