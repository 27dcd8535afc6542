// The int4 mat-vec (int4_mat_vec.cuh) of the usual case, which is the models': up to four sequences, x in
// order, groups of 128 columns, of a power of two times 128, or of a whole row, all in one phase.
//
// The products run in whole numbers (common/int4_digits.cuh): one mask decodes a word of weights, where the
// general kernel's 16-bit floats take nine instructions. x is brought to digits once, by all warps together,
// and lies in shared memory in the order in which the lanes read it. Warps take equal shares of the pieces
// and copy them as whole lines, scales beside them, for a memory that answers requests and not bytes. No
// division, and no barrier but the warp's between the first copy and the last: a kernel of some microseconds
// pays for every instruction on the way to either.
#pragma once

#include "cuda/common/int4_digits.cuh"
#include "cuda/common/stamps.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/mat_vec.cuh"

#include <type_traits>

namespace pykernels::cuda {

__device__ __forceinline__ int divide(int value, const Int4Divisor& by) {
    return by.inverse ? static_cast<int>(uint64_t{static_cast<uint32_t>(value)} * by.inverse >> 32) : value;
}

// As a number that the compiler knows not to be negative: divided by a shift.
__device__ __forceinline__ int int4_lane() {
    return static_cast<int>(threadIdx.x % warp_size);
}

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

    __device__ __forceinline__ Int4Share(const Int4OnePhasePlan& plan, int block, int warp) {
        begin = block * plan.block_units + min(block, plan.longer_blocks);
        units = plan.block_units + (block < plan.longer_blocks);
        items = int4_tiles(units) * plan.pieces;
        first_item = first_of(plan, warp);
        last_item = first_of(plan, warp + 1);
        first_tile = divide(first_item, plan.by_pieces);
        first_piece = first_item - first_tile * plan.pieces;
    }
    // int4_first_item, where warps are a power of two.
    __device__ __forceinline__ int first_of(const Int4OnePhasePlan& plan, int warp) const {
        return items * warp >> plan.warps_log2;
    }
};

// A warp's copies, [stage][16 rows of 128 bytes, then their scales]. Of a row's eight 16 bytes lane t reads
// number t and number t + 4; in odd rows these have changed places, so that eight lanes of two rows meet in
// different banks.
template <class Op>
struct Int4LineCopies {
    using T = typename Op::T;
    static constexpr int rows_at_once = 4;  // 8 lanes a row
    const typename Op::Params& params;
    const Int4OnePhasePlan& plan;
    const Int4Share& share;
    unsigned char* stages;
    int item, tile, piece, stage = 0;
    const uint8_t* from[2][2];  // [side][half of the tile's units]: this lane's 16 bytes of the first piece
    const T* scales;            // of lanes 0 to 15, row `lane`'s

    __device__ __forceinline__ Int4LineCopies(const typename Op::Params& params, const Int4OnePhasePlan& plan,
                                              const Int4Share& share, unsigned char* stages)
        : params(params),
          plan(plan),
          share(share),
          stages(stages),
          item(share.first_item),
          tile(share.first_tile),
          piece(share.first_piece) {
        if (item < share.last_item) begin_tile();
    }

    // Row `place` of a tile on one of its sides. Where there is none, one that is there: in one place with
    // its neighbours', it costs nothing, and nobody asks for its sum.
    __device__ __forceinline__ Int4Row row(int of_tile, int place, int side) const {
        const int unit = share.begin + min(of_tile * int4_tile_units + place, share.units - 1);
        const Int4Row at = Op::row(params, unit, side);
        return at.row < 0 ? Op::row(params, unit, 0) : at;
    }

    __device__ __forceinline__ void begin_tile() {
        // A lane finds one row, and has those that it copies of from the lanes that found them.
        const int lane = int4_lane();
        const Int4Row at = row(tile, lane % int4_tile_units, lane / int4_tile_units % 2);
        const Int4WeightParams& weight = Op::weight(params, at.weight);
        const auto begin =
            reinterpret_cast<uintptr_t>(weight.packed + uint64_t{static_cast<uint32_t>(at.row)} *
                                                            (static_cast<uint32_t>(Op::width(params)) / 2));
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int place = side * int4_tile_units + half * rows_at_once + lane / 8;
                from[side][half] =
                    reinterpret_cast<const uint8_t*>(shuffle_index(begin, place)) + lane % 8 * 16;
            }
        }
        scales = static_cast<const T*>(weight.scales) +
                 uint64_t{static_cast<uint32_t>(at.row)} * static_cast<uint32_t>(weight.n_groups);
    }

    __device__ __forceinline__ void copy_next() {
        if (item < share.last_item) {
            const int lane = int4_lane(), row = lane / 8;
            unsigned char* to = stages + stage * int4_one_phase_stage_bytes;
            unsigned char* line = to + row * int4_piece_bytes + (lane % 8 ^ row % 2 * 4) * 16;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    async_copy16(line + (2 * side + half) * rows_at_once * int4_piece_bytes,
                                 from[side][half] + static_cast<uint32_t>(piece) * int4_piece_bytes);
                }
            }
            if (plan.group_shift == 0 && lane < int4_tile_rows) {
                async_copy4(to + int4_tile_rows * int4_piece_bytes + lane * 4,
                            scales + 2 * static_cast<uint32_t>(piece));
            }
            ++item;
            if (++piece == plan.pieces && item < share.last_item) {
                piece = 0;
                ++tile;
                begin_tile();
            }
            if (++stage == int4_one_phase_stages) stage = 0;
        }
        async_commit();  // an empty group keeps the count right
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

// sequences: the most there are, 1 or 4.
template <class Op, int sequences>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_one_phase_kernel(const __grid_constant__ typename Op::Params params,
                          const __grid_constant__ Int4OnePhasePlan plan) {
    Stamps stamps;
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.x / warp_size),
              lane = int4_lane();
    const int g = lane / 4, t = lane % 4;
    const int width = Op::width(params), batch = sequences == 1 ? 1 : Op::batch(params);
    const Int4Share share(plan, static_cast<int>(blockIdx.x), warp);
    const T* const norm_weight = Op::norm_weight(params);
    const int x_column = thread * vector_elements, x_step = plan.warps * warp_size * vector_elements;
    // When units are finished, which neighbouring lanes do together, each for some of the warps' parts.
    const int finish_lanes = 1 << plan.finish_lanes_log2, finisher = thread >> plan.finish_lanes_log2;
    const int my_unit = finisher / batch, my_sequence = finisher % batch;

    Columns x_columns, norm_columns;
    int position = 0;
    if (norm_weight) norm_columns.load_from(norm_weight, x_column, width, x_step);
    if (!plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width, x_step);
    }
    unsigned char* const stages = shared + warp * int4_one_phase_stages * int4_one_phase_stage_bytes;
    Int4LineCopies<Op> copies(params, plan, share, stages);
#pragma unroll 1
    for (int i = 0; i < plan.stages_ahead_of_x; ++i) copies.copy_next();
    stamps.mark(StampPoint::first_copies);

    float* squares = reinterpret_cast<float*>(shared + plan.squares_offset);
    float2* factors = reinterpret_cast<float2*>(shared + plan.factors_offset);
    unsigned char* x_shared = shared + plan.x_offset;
    wait_for_producers();
    stamps.mark(StampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width, x_step);
    }
#pragma unroll 1
    for (int i = plan.stages_ahead_of_x; i < int4_one_phase_stages - 1; ++i) copies.copy_next();
#pragma unroll 1
    for (int b = 0; b < batch; ++b) {
        float sum = 0;
        const auto keep = [&](int i, int column) {
            Floats8 v = unpack8<T>(x_columns.vectors[i]);
            if (norm_weight) {
                sum = dot8(v, v, sum);
                const Floats8 w = unpack8<T>(norm_columns.vectors[i]);
#pragma unroll
                for (int j = 0; j < vector_elements; ++j) v[j] *= w[j];
            }
            int4_keep_x(v, static_cast<uint32_t>(column), batch, x_shared + b * int4_digits_bytes,
                        factors + b * 4);
        };
#pragma unroll 1
        for (int first = x_column; first < width; first += mat_vec_x_vectors * x_step) {
            if (b > 0 || first != x_column) {
                x_columns.load_from(Op::x(params) + int64_t{b} * width, first, width, x_step);
                if (norm_weight) norm_columns.load_from(norm_weight, first, width, x_step);
            }
            // Apart, for a way of few instructions through most layers: they come anew from memory.
            if (first + x_step >= width) {
                keep(0, first);
                break;
            }
#pragma unroll
            for (int i = 0; i < mat_vec_x_vectors; ++i) {
                const int column = first + i * x_step;
                if (column >= width) break;
                keep(i, column);
            }
        }
        if (norm_weight) {
            sum = warp_sum(sum);
            if (lane == 0) store(squares + b * plan.warps + warp, sum);
        }
    }
    typename Op::Extra extra = {};
    if (my_unit < share.units) extra = Op::prepare(params, share.begin + my_unit, my_sequence, position);
    block_barrier();  // x is there, and its squares
    stamps.mark(StampPoint::x_ready);

    float* sums = reinterpret_cast<float*>(shared + plan.sums_offset);
    const unsigned char* const my_x = x_shared + min(g, 2 * int4_digits - 1) * 64 + t * 16;
    const float2* const my_factors = factors + t;
    const int my_line = g * int4_piece_bytes + t * 16, swap = g % 2 * 64;
    const T* scale_rows[2] = {};
    const uint8_t* zero_rows[2] = {};
    float eighths[2][2] = {{1, 1}, {1, 1}};  // zero points over 8, of both sides' chunks
    float acc[2][sequences] = {};
    int tile = share.first_tile, piece = share.first_piece, stage = 0;
#pragma unroll 1
    for (int item = share.first_item; item < share.last_item; ++item) {
        uint32_t scales[2];
        if (plan.zeros || plan.group_shift != 0) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                if (item == share.first_item || piece == 0) {
                    const Int4Row at = copies.row(tile, g, side);
                    const Int4WeightParams& weight = Op::weight(params, at.weight);
                    const int64_t first_group = int64_t{at.row} * weight.n_groups;
                    scale_rows[side] = static_cast<const T*>(weight.scales) + first_group;
                    zero_rows[side] = weight.zeros ? weight.zeros + first_group : nullptr;
                }
                scales[side] = int4_load_pair(scale_rows[side], piece, plan.group_shift);
                const uint32_t zeros =
                    zero_rows[side] ? int4_load_pair(zero_rows[side], piece, plan.group_shift) : 0x808u;
                eighths[side][0] = 0.125f * static_cast<float>(zeros & 0xffu);
                eighths[side][1] = 0.125f * static_cast<float>(zeros >> 8);
            }
        }
        async_wait<int4_one_phase_stages - 2>();
        warp_barrier();  // all lanes' copies have landed, and all have read the stage that is written next
        copies.copy_next();
        const unsigned char* lines = stages + stage * int4_one_phase_stage_bytes;
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
        if (++stage == int4_one_phase_stages) stage = 0;
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
    stamps.mark(StampPoint::streamed);

    // Of a sequence: 1 / sqrt(mean(x^2) + eps), by which the norm divides.
    const auto norm_scale = [&](int b) {
        if (!norm_weight) return 1.0f;
        const float4* mine = reinterpret_cast<const float4*>(squares + b * plan.warps);
        float sum = 0;
#pragma unroll 4
        for (int w = 0; w < plan.warps / 4; ++w) {
            const float4 four = load(mine + w);
            sum += (four.x + four.y) + (four.z + four.w);
        }
        return reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
    };
    float scale = norm_scale(my_sequence);

    block_barrier();  // all warps' sums are there
    const Int4Divisor& by_items = plan.by_items[static_cast<int>(blockIdx.x) < plan.longer_blocks];
    const int finished_at_once = plan.warps * warp_size >> plan.finish_lanes_log2;
    // In whole warps, which add their lanes' parts up together.
#pragma unroll 1
    for (int first = warp * warp_size >> plan.finish_lanes_log2; first < share.units * batch;
         first += finished_at_once) {
        const int i = first + (lane >> plan.finish_lanes_log2);
        const bool there = i < share.units * batch;
        const auto at = static_cast<uint32_t>(there ? i : first);
        const int unit = static_cast<int>(at / static_cast<uint32_t>(batch)),
                  b = static_cast<int>(at % static_cast<uint32_t>(batch));
        if (first >= finished_at_once) {
            extra = Op::prepare(params, share.begin + unit, b, Op::position(params, b));
            if (batch > 1) scale = norm_scale(b);
        }
        const int of_tile = unit / int4_tile_units;
        // The warps whose shares have the tile's first piece and its last (int4_warp_of).
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
        if (there && (lane & (finish_lanes - 1)) == 0)
            Op::finish(params, share.begin + unit, b, extra, sum_a * scale, sum_b * scale);
    }
}

}  // namespace pykernels::cuda
