// The int4 GEMV (int4_gemv.cuh) of the fast path, which is the models': up to four sequences, x in
// order, groups of 128 columns, of a power of two times 128, or of a whole row, all in one phase.
//
// The products run in whole numbers (common/int4_digits.cuh): one mask decodes a word of weights, where the
// general kernel's 16-bit floats take nine instructions. x is brought to digits once, by all warps together,
// and lies in shared memory in the order in which the lanes read it. Warps take equal shares of the pieces
// and copy them as whole lines, scales beside them, for a memory that answers requests and not bytes. No
// division, and no barrier but the warp's between the first copy and the last: a kernel of some microseconds
// pays for every instruction on the way to either.
#pragma once

#include "cuda/common/timestamps.cuh"
#include "cuda/gemv_mainloop.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/int4_tiles.cuh"

namespace pykernels::cuda {

// A warp's copies, [stage][16 rows of 128 bytes, then their scales]. Of a row's eight 16 bytes lane t reads
// number t and number t + 4; in odd rows these have changed places, so that eight lanes of two rows meet in
// different banks.
template <class Op>
struct Int4LineCopies {
    using T = typename Op::T;
    static constexpr int rows_at_once = 4;  // 8 lanes a row
    const typename Op::Params& params;
    const Int4GemvFastPlan& plan;
    const Int4Share& share;
    unsigned char* stages;
    int item, tile, piece, stage = 0;
    const uint8_t* from[2][2];  // [side][half of the tile's units]: this lane's 16 bytes of the first piece
    const T* scales;            // of lanes 0 to 15, row `lane`'s

    __device__ __forceinline__ Int4LineCopies(const typename Op::Params& params, const Int4GemvFastPlan& plan,
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
            unsigned char* to = stages + stage * int4_gemv_fast_stage_bytes;
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
            if (++stage == int4_gemv_fast_stages) stage = 0;
        }
        async_commit();  // an empty group keeps the count right
    }
};

// sequences: the most there are, 1 or 4.
template <class Op, int sequences>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_gemv_fast_kernel(const __grid_constant__ typename Op::Params params,
                          const __grid_constant__ Int4GemvFastPlan plan) {
    Timestamps timestamps;
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.x / warp_size),
              lane = int4_lane();
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
    unsigned char* const stages = shared + warp * int4_gemv_fast_stages * int4_gemv_fast_stage_bytes;
    Int4LineCopies<Op> copies(params, plan, share, stages);
#pragma unroll 1
    for (int i = 0; i < plan.stages_ahead_of_x; ++i) copies.copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    const Int4Places places(shared, plan);
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width, x_step);
    }
#pragma unroll 1
    for (int i = plan.stages_ahead_of_x; i < int4_gemv_fast_stages - 1; ++i) copies.copy_next();
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
            int4_keep_x(v, static_cast<uint32_t>(column), batch, places.x + b * int4_digits_bytes,
                        places.factors + b * 4);
        };
#pragma unroll 1
        for (int first = x_column; first < width; first += gemv_x_vectors * x_step) {
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
            for (int i = 0; i < gemv_x_vectors; ++i) {
                const int column = first + i * x_step;
                if (column >= width) break;
                keep(i, column);
            }
        }
        if (norm_weight) {
            sum = warp_sum(sum);
            if (lane == 0) store(places.squares + b * plan.warps + warp, sum);
        }
    }
    typename Op::Extra extra = {};
    if (my_unit < share.units) extra = Op::prepare(params, share.begin + my_unit, my_sequence, position);
    block_barrier();  // x is there, and its squares
    timestamps.mark(TimestampPoint::x_ready);

    int4_multiply_share<T, sequences>(
        plan, share, batch, places, stages, copies, [&](int tile, int place, int side) {
            const Int4Row at = copies.row(tile, place, side);
            const Int4WeightParams& weight = Op::weight(params, at.weight);
            const int64_t first_group = int64_t{at.row} * weight.n_groups;
            return Int4GroupRows<T>{static_cast<const T*>(weight.scales) + first_group,
                                    weight.zeros ? weight.zeros + first_group : nullptr};
        });
    timestamps.mark(TimestampPoint::streamed);

    const auto norm_scale = [&](int b) {
        return norm_weight
                   ? int4_norm_scale(places.squares + b * plan.warps, plan.warps, width, Op::eps(params))
                   : 1.0f;
    };
    float scale = norm_scale(my_sequence);

    block_barrier();  // all warps' sums are there
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
        const float2 both = int4_unit_sums(plan, share, places.sums, unit, b, batch);
        if (there && (lane & (finish_lanes - 1)) == 0)
            Op::finish(params, share.begin + unit, b, extra, both.x * scale, both.y * scale);
    }
}

}  // namespace pykernels::cuda
