// The GEMV the int4 ops share: out = epilogue(W x), W of 4 bits (docs/int4.md), x of 1 to 8 rows.
//
// A tile is 16 rows of W, both rows of 8 units (gemv_epilogues.cuh), and a piece 256 columns of it: 2 KB.
// A block takes consecutive units, its warps equal shares of their pieces, in a row. A warp copies its own
// pieces to shared memory (cp.async), three ahead of the one it works on, and reads nobody else's: the stream
// has no barrier but the warp's. The stream begins before wait_for_producers(): weights are constants.
//
// The products are the tensor core's, 16 rows of W by 16 columns by 8 rows of x. Of 32 neighbouring columns
// lane t of four has word t of a row's 16 bytes: 8 elements, and the 16 bytes of x that meet them. Which
// column an index of the product means is free as long as both factors agree, so x is taken as it lies, and
// no product crosses a group's border.
//
// Rounding: q - zero is exact as T (a power of two below, int4_decode.cuh), its product with x exact in
// float32; the tensor core sums up to 128 columns of a group in float32, which one float32 multiply-add by
// the scale adds to the row's sum. With a norm, x times the norm's weight is rounded to T, and 1 /
// sqrt(mean(x^2) + eps) is a factor of the very end. Sums are joined in a fixed order: the same bits every
// time.
//
// Least bytes: packed weights, scales and zero points once. What limits it: memory. A step of 128 columns is
// 126 instructions for a lane's 64 weights, half of them on the integer and half on the float16 pipe.
//
// An Op has what gemv_epilogues.cuh gives, and: T; Params; n_weights; width(p), batch(p), x(p),
// norm_weight(p) (null: x as it is), eps(p); weight(p, i), weight_rows(p, i); row(p, unit, side).
#pragma once

#include "cuda/common/dispatch.h"
#include "cuda/common/int4_decode.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/int4_gemv_fast.cuh"

namespace pykernels::cuda {

// The pieces a warp copies, ahead of those it multiplies. Of a piece's 16 rows a lane copies four, each
// fourth from row lane / 8 on, and of each 16 bytes, place lane % 8.
template <class Op>
struct Int4Stream {
    static constexpr int rows_at_once = warp_size * 16 / int4_piece_bytes;
    const Int4Block<Op>& block;
    int begin, end, phases, warp;
    unsigned char* first_stage;  // of the warp, this lane's place
    int stage = 0, index = -1, item = 0, last_item = 0, tile = 0, piece = 0, pieces = 0, columns = 0;
    const uint8_t* rows[4] = {};
    bool is_row[4] = {};  // otherwise zeros

    __device__ __forceinline__ Int4Phase phase() const {
        return Int4Phase(block.plan, Op::width(block.params), begin, end, index);
    }

    __device__ __forceinline__ void begin_tile() {
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        const Int4Phase now = phase();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Int4Row at = block.row(now, tile, lane / 8 + rows_at_once * k);
            is_row[k] = at.row >= 0;
            rows[k] = block.packed(now, at);
            if (is_row[k]) rows[k] += piece * int4_piece_bytes + lane % 8 * 16;
        }
    }

    __device__ __forceinline__ void begin_phase() {
        const Int4Phase now = phase();
        item = now.first_item(warp, block.plan.warps);
        last_item = now.first_item(warp + 1, block.plan.warps);
        pieces = now.pieces;
        columns = now.columns;
        tile = item / pieces;
        piece = item - tile * pieces;
        if (item < last_item) begin_tile();
    }

    __device__ __forceinline__ void copy_next() {
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        while (item == last_item && index + 1 < phases) {
            ++index;
            begin_phase();
        }
        if (item < last_item) {
            if (piece * int4_piece + lane % 8 * 32 < columns) {
                unsigned char* to = first_stage + stage;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    async_copy16_or_zeros(to + rows_at_once * k * int4_piece_pitch, rows[k], is_row[k]);
                    if (is_row[k]) rows[k] += int4_piece_bytes;
                }
            }
            ++item;
            if (++piece == pieces && item < last_item) {
                piece = 0;
                ++tile;
                begin_tile();
            }
            stage = stage == (int4_stages - 1) * int4_stage_bytes ? 0 : stage + int4_stage_bytes;
        }
        async_commit();  // an empty group keeps the count right
    }
};

// step_blocks: a scaling every so many blocks of 32 columns.
template <class Op, int step_blocks>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_gemv_kernel(const __grid_constant__ typename Op::Params params,
                     const __grid_constant__ Int4GemvPlan plan) {
    Timestamps timestamps;
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int g = lane / 4, t = lane % 4;
    const int width = Op::width(params), batch = Op::batch(params), units = Op::units(params);
    const int begin = gemv_first_unit(units, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)),
              end = gemv_first_unit(units, static_cast<int>(blockIdx.x) + 1, static_cast<int>(gridDim.x));
    const int phases = (end - begin + plan.phase_units - 1) / plan.phase_units * plan.variants * plan.panels;
    const Int4Block<Op> block = {params, plan};
    const T* norm_weight = Op::norm_weight(params);

    // Asked for first, because behind the stream it would take microseconds: scales and zero points, the
    // norm's weight, and x where there is nothing to wait for.
    const Int4Phase first_phase(plan, width, begin, end, 0);
    block.copy_groups(first_phase, shared);
    if (norm_weight) block.copy_x(first_phase, shared, batch, batch + 1);
    const int my_unit = thread / batch, my_sequence = thread % batch;  // when units are finished
    int position = 0;
    if (!plan.programmatic) {
        position = Op::position(params, my_sequence);
        block.copy_x(first_phase, shared, 0, batch);
    }
    async_commit();

    unsigned char* stages = shared + warp * int4_stream_bytes;
    Int4Stream<Op> stream = {block,  begin, end,
                             phases, warp,  stages + lane / 8 * int4_piece_pitch + lane % 8 * 16};
#pragma unroll 1
    for (int i = 0; i < int4_stages - 1; ++i) stream.copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, my_sequence);
        block.copy_x(first_phase, shared, 0, batch);
        async_commit();
        async_wait<0>();
    } else {
        async_wait<int4_stages - 1>();  // of the groups so far the oldest has landed
    }

    float* sums = reinterpret_cast<float*>(shared + int4_sums_offset(plan));
    float* squares = reinterpret_cast<float*>(shared + int4_squares_offset(plan, batch));
    typename Op::Extra extra = {};
    float sum_a = 0, sum_b = 0;
    int stage = 0;
    for (int index = 0; index < phases; ++index) {
        const Int4Phase phase(plan, width, begin, end, index);
        const bool finishes = my_unit < phase.units;
        if (phase.first_of_units) {
            sum_a = sum_b = 0;
            if (finishes) extra = Op::prepare(params, phase.first_unit + my_unit, my_sequence, position);
        }
        if (index > 0) {
            block_barrier();  // everyone is done with the last phase's x, scales and sums
            block.copy_groups(phase, shared);
            if (plan.variants * plan.panels > 1)
                block.copy_x(phase, shared, 0, batch + (norm_weight != nullptr));
            async_commit();
            async_wait<0>();
        }
        if (index == 0 || plan.variants * plan.panels > 1) block.finish_x(phase, shared);
        block_barrier();  // x, scales and zero points are there
        if (index == 0) timestamps.mark(TimestampPoint::x_ready);

        const int item_begin = phase.first_item(warp, plan.warps),
                  item_end = phase.first_item(warp + 1, plan.warps);
        int tile = item_begin / phase.pieces, piece = item_begin - tile * phase.pieces;
        const T* x_row = block.x_row(shared, min(g, batch - 1)) + t * vector_elements;
        const unsigned char *scale_rows[2] = {}, *zero_rows[2] = {};
        int group_steps = 1, group = 0, steps_left = 0;
        float acc[4] = {};
        for (int item = item_begin; item < item_end; ++item) {
            if (item == item_begin || piece == 0) {
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int place = side * int4_tile_units + g;
                    const Int4Row at = block.row(phase, tile, place);
                    const int slot = tile * int4_tile_rows + place;
                    scale_rows[side] = shared + int4_scales_offset(plan) + slot * plan.scale_pitch;
                    zero_rows[side] = shared + int4_zeros_offset(plan) + slot * plan.zero_pitch;
                    if (at.row >= 0) {
                        const Int4WeightParams& weight = Op::weight(params, at.weight);
                        scale_rows[side] += block.template groups<T>(phase, at, weight.scales).skew();
                        if (weight.zeros)
                            zero_rows[side] += block.template groups<uint8_t>(phase, at, weight.zeros).skew();
                    }
                }
                int n_groups = 1;
                for (int i = 0; i < Op::n_weights; ++i) {
                    if (plan.variant_of[i] == phase.variant) n_groups = Op::weight(params, i).n_groups;
                }
                const int group_size = width / n_groups, column = phase.column + piece * int4_piece;
                group_steps = group_size / (32 * step_blocks);
                group = column / group_size - phase.column / group_size;
                steps_left = group_steps - column % group_size / (32 * step_blocks);
            }
            async_wait<int4_stages - 2>();
            warp_barrier();  // all lanes' copies have landed, and all have read the stage that is written
                             // next
            stream.copy_next();

            const unsigned char* words = stages + stage + g * int4_piece_pitch + t * 4;
            const T* x = x_row + piece * int4_piece;
            const int steps = min(int4_piece, phase.columns - piece * int4_piece) / (32 * step_blocks);
#pragma unroll 1
            for (int step = 0; step < steps; ++step) {
                const uint32_t zero_a =
                                   int4_negative_zero<T>(plan.zero_pitch ? load(zero_rows[0] + group) : 8u),
                               zero_b =
                                   int4_negative_zero<T>(plan.zero_pitch ? load(zero_rows[1] + group) : 8u);
                float c[4] = {};
#pragma unroll
                for (int i = 0; i < step_blocks; ++i) {
                    uint32_t a[4], b[4];
                    int4_decode<T>(load(reinterpret_cast<const uint32_t*>(words + i * 16)), zero_a, a);
                    int4_decode<T>(load(reinterpret_cast<const uint32_t*>(
                                       words + int4_tile_units * int4_piece_pitch + i * 16)),
                                   zero_b, b);
                    const uint4 v = load(reinterpret_cast<const uint4*>(x + i * 32));
                    matrix_multiply_add<T>(c, {a[0], b[0], a[1], b[1]}, {v.x, v.y});
                    matrix_multiply_add<T>(c, {a[2], b[2], a[3], b[3]}, {v.z, v.w});
                }
                const float scale_a =
                                load1(reinterpret_cast<const T*>(scale_rows[0]) + group) * Int4Code<T>::steps,
                            scale_b =
                                load1(reinterpret_cast<const T*>(scale_rows[1]) + group) * Int4Code<T>::steps;
                acc[0] += scale_a * c[0];
                acc[1] += scale_a * c[1];
                acc[2] += scale_b * c[2];
                acc[3] += scale_b * c[3];
                words += step_blocks * 16;
                x += step_blocks * 32;
                if (--steps_left == 0) {
                    steps_left = group_steps;
                    ++group;
                }
            }
            stage = stage == (int4_stages - 1) * int4_stage_bytes ? 0 : stage + int4_stage_bytes;
            if (++piece == phase.pieces || item + 1 == item_end) {  // this warp's part of the tile is done
                int4_keep_part(sums, warp + tile, batch, acc);
                piece = 0;
                ++tile;
            }
        }

        timestamps.mark(TimestampPoint::streamed);
        block_barrier();  // all warps' sums of the phase are there, and their squares
        if (!finishes) continue;
        int4_add_parts(sums, phase.tiles * phase.pieces, phase.pieces, plan.warps, my_unit, my_sequence,
                       batch, sum_a, sum_b);
        if (phase.last_of_units) {
            float scale = 1;
            if (norm_weight) {
                float sum = 0;
                for (int w = 0; w < plan.warps; ++w) sum += load(squares + my_sequence * plan.warps + w);
                scale = reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
            }
            Op::finish(params, phase.first_unit + my_unit, my_sequence, extra, sum_a * scale, sum_b * scale);
        }
    }
}

template <class Op>
void launch_int4_gemv(const typename Op::Params& params, const Stream& stream) {
    // Weights read x alike where they share the tensor of their perm (or have none) and their groups.
    const int width = Op::width(params);
    Int4GemvSizes sizes = {
        Op::units(params), width, Op::batch(params), 1, 0, Op::norm_weight(params) != nullptr, false};
    int variant_of[int4_max_weights] = {}, step_blocks = 4;
    for (int i = 0; i < Op::n_weights; ++i) {
        const Int4WeightParams& weight = Op::weight(params, i);
        int like = 0;
        while (weight.perm != Op::weight(params, like).perm ||
               weight.n_groups != Op::weight(params, like).n_groups)
            ++like;
        variant_of[i] = like < i ? variant_of[like] : sizes.variants++;
        sizes.n_groups = max(sizes.n_groups, weight.n_groups);
        sizes.zeros |= weight.zeros != nullptr;
        step_blocks = min(step_blocks, int4_step_blocks(width / weight.n_groups));
    }
    const GemvDevice device = {device_limits().sm_count, device_limits().shared_bytes};
    const bool x_is_vectors = are_vectors(width, Op::x(params), Op::norm_weight(params));
    bool in_order = x_is_vectors && Op::weight(params, 0).perm == nullptr;
    for (int i = 0; i < Op::n_weights; ++i) {
        const Int4WeightParams& weight = Op::weight(params, i);
        in_order &= reinterpret_cast<uintptr_t>(weight.scales) % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(weight.zeros) % 2 == 0;
    }
    const Int4GemvFastPlan fast_path = plan_int4_gemv_fast(sizes, in_order, stream.programmatic, device);
    if (fast_path.fits) {
        launch(sizes.batch == 1 ? int4_gemv_fast_kernel<Op, 1>
                                : int4_gemv_fast_kernel<Op, int4_gemv_fast_max_batch>,
               fast_path.blocks, 32 * fast_path.warps, static_cast<size_t>(fast_path.shared_bytes), stream,
               params, fast_path);
        return;
    }
    Int4GemvPlan plan = plan_int4_gemv(sizes, stream.programmatic, device);
    for (int i = 0; i < int4_max_weights; ++i) plan.variant_of[i] = variant_of[i];
    plan.x_is_vectors = x_is_vectors;
    const auto launch_with = [&](auto blocks) {
        launch(int4_gemv_kernel<Op, decltype(blocks)::value>, plan.blocks, 32 * plan.warps,
               static_cast<size_t>(plan.shared_bytes), stream, params, plan);
    };
    if (step_blocks == 4) return launch_with(Constant<4>{});
    if (step_blocks == 2) return launch_with(Constant<2>{});
    launch_with(Constant<1>{});
}

}  // namespace pykernels::cuda
