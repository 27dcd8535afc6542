// The int4 GEMV: out = epilogue(W x), W of 4 bits (docs/int4.md), x of 1 to 8 rows. Here are the general
// path's kernel and the launcher that chooses between it and the fast path (int4_gemv_fast.cuh).
//
// A row tile is 16 rows of W, both rows of 8 row pairs (gemv_epilogues.cuh); a K tile is 256 columns of it, 2
// KB. A block is assigned consecutive row pairs, its warps equal numbers of consecutive K tiles. A warp
// copies its own K tiles to shared memory with cp.async, three ahead of the one it multiplies. No other warp
// reads them, so the only barrier is the warp's. Copies start before griddepcontrol.wait, since weights are
// constants.
//
// Products are mma.m16n8k16: 16 rows of W by 16 columns by 8 rows of x. Of 32 neighbouring columns, lane t of
// four holds word t of a row's 16 bytes (8 elements) and the 16 bytes of x for them. The order of the columns
// within an MMA is free as long as both operands agree, so x is loaded as it is stored. No MMA crosses a
// group.
//
// Rounding: (q - zero) * 2^-n is exact in T (int4_decode.cuh), its product with x exact in float32. The MMA
// accumulates up to 128 columns of a group in float32; one float32 FMA with the scale adds them to the row's
// sum. With a norm, x times the norm's weight is rounded to T, and the sums are multiplied by 1 /
// sqrt(mean(x^2) + eps) in the epilogue. Partials are added in a fixed order: results are bitwise
// reproducible.
//
// Fewest bytes: packed weights, scales and zero points once. Limit: memory bandwidth. 128 columns take 126
// instructions for a lane's 64 weights, half on the integer pipe and half on the float16 pipe.
//
// An Op has what gemv_epilogues.cuh gives, and: T; Params; n_weights; width(p), batch(p), x(p),
// norm_weight(p) (null: x as it is), eps(p); weight(p, i), weight_rows(p, i); row(p, pair, side);
// splits_columns: has a kernel for clusters.
#pragma once

#include "cuda/common/device_name.h"
#include "cuda/common/dispatch.h"
#include "cuda/common/int4_decode.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/resident_clusters.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/int4_gemv_fast.cuh"

namespace pykernels::cuda {

// The copies of a warp. Of a K tile's 16 rows a lane copies every fourth from row lane / 8 on, and of each
// the 16-byte vector lane % 8.
template <class Op>
struct Int4Stream {
    static constexpr int rows_at_once = warp_size * 16 / int4_k_tile_bytes;
    const Int4Block<Op>& block;
    int begin, end, phases, warp;
    unsigned char* first_stage;  // this lane's vector of the warp's first stage
    int stage = 0, index = -1, item = 0, last_item = 0, tile = 0, k_tile = 0, k_tiles = 0, columns = 0;
    const uint8_t* rows[4] = {};
    bool is_row[4] = {};  // false: zeros are copied

    __device__ __forceinline__ Int4Phase phase() const {
        return Int4Phase(block.plan, Op::width(block.params), begin, end, index);
    }

    __device__ __forceinline__ void begin_tile() {
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        const Int4Phase now = phase();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Int4Row row = block.row(now, tile, lane / 8 + rows_at_once * k);
            is_row[k] = row.row >= 0;
            rows[k] = block.packed(now, row);
            if (is_row[k]) rows[k] += k_tile * int4_k_tile_bytes + lane % 8 * 16;
        }
    }

    __device__ __forceinline__ void begin_phase() {
        const Int4Phase now = phase();
        item = now.first_item(warp, block.plan.warps);
        last_item = now.first_item(warp + 1, block.plan.warps);
        k_tiles = now.k_tiles;
        columns = now.columns;
        tile = item / k_tiles;
        k_tile = item - tile * k_tiles;
        if (item < last_item) begin_tile();
    }

    __device__ __forceinline__ void copy_next() {
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        while (item == last_item && index + 1 < phases) {
            ++index;
            begin_phase();
        }
        if (item < last_item) {
            if (k_tile * int4_k_tile + lane % 8 * 32 < columns) {
                unsigned char* to = first_stage + stage;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    async_copy16_or_zeros(to + rows_at_once * k * int4_k_tile_pitch, rows[k], is_row[k]);
                    if (is_row[k]) rows[k] += int4_k_tile_bytes;
                }
            }
            ++item;
            if (++k_tile == k_tiles && item < last_item) {
                k_tile = 0;
                ++tile;
                begin_tile();
            }
            stage = stage == (int4_stages - 1) * int4_stage_bytes ? 0 : stage + int4_stage_bytes;
        }
        async_commit();  // a group per call, empty or not: async_wait counts groups
    }
};

// step_blocks: blocks of 32 columns between two scalings.
template <class Op, int step_blocks>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_gemv_kernel(const __grid_constant__ typename Op::Params params,
                     const __grid_constant__ Int4GemvPlan plan) {
    Timestamps timestamps;
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int g = lane / 4, t = lane % 4;
    const int width = Op::width(params), batch = Op::batch(params), pairs = Op::row_pairs(params);
    const int begin = gemv_first_pair(pairs, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)),
              end = gemv_first_pair(pairs, static_cast<int>(blockIdx.x) + 1, static_cast<int>(gridDim.x));
    const int phases = (end - begin + plan.phase_pairs - 1) / plan.phase_pairs * plan.variants * plan.panels;
    const Int4Block<Op> block = {params, plan};
    const T* norm_weight = Op::norm_weight(params);

    // --- prefetch scales, zero points, the norm's weight, and x where nothing has to be waited for. Behind
    // the weights they would arrive microseconds later.
    const Int4Phase first_phase(plan, width, begin, end, 0);
    block.copy_groups(first_phase, shared);
    if (norm_weight) block.copy_x(first_phase, shared, batch, batch + 1);
    const int out_pair = thread / batch, out_sequence = thread % batch;  // of this thread in the epilogue
    int position = 0;
    if (!plan.programmatic) {
        position = Op::position(params, out_sequence);
        block.copy_x(first_phase, shared, 0, batch);
    }
    async_commit();

    // --- prefetch weights
    unsigned char* stages = shared + warp * int4_stream_bytes;
    Int4Stream<Op> stream = {block,  begin, end,
                             phases, warp,  stages + lane / 8 * int4_k_tile_pitch + lane % 8 * 16};
#pragma unroll 1
    for (int i = 0; i < int4_stages - 1; ++i) stream.copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, out_sequence);
        block.copy_x(first_phase, shared, 0, batch);
        async_commit();
        async_wait<0>();
    } else {
        async_wait<int4_stages - 1>();  // the oldest group, x and what came with it, has landed
    }

    float* sums = reinterpret_cast<float*>(shared + int4_sums_offset(plan));
    float* squares = reinterpret_cast<float*>(shared + int4_squares_offset(plan, batch));
    typename Op::Extra extra = {};
    float sum_a = 0, sum_b = 0;
    int stage = 0;
    for (int index = 0; index < phases; ++index) {
        const Int4Phase phase(plan, width, begin, end, index);
        const bool finishes = out_pair < phase.pairs;
        if (phase.first_of_pairs) {
            sum_a = sum_b = 0;
            if (finishes) extra = Op::prepare(params, phase.first_pair + out_pair, out_sequence, position);
        }

        // --- x, scales and zero points of the phase
        if (index > 0) {
            block_barrier();  // all threads have read the previous phase's x, scales and sums
            block.copy_groups(phase, shared);
            if (plan.variants * plan.panels > 1)
                block.copy_x(phase, shared, 0, batch + (norm_weight != nullptr));
            async_commit();
            async_wait<0>();
        }
        if (index == 0 || plan.variants * plan.panels > 1) block.finish_x(phase, shared);
        block_barrier();  // x, scales and zero points are in shared memory
        if (index == 0) timestamps.mark(TimestampPoint::x_ready);

        // --- mainloop over the warp's items
        const int item_begin = phase.first_item(warp, plan.warps),
                  item_end = phase.first_item(warp + 1, plan.warps);
        int tile = item_begin / phase.k_tiles, k_tile = item_begin - tile * phase.k_tiles;
        const T* x_row = block.x_row(shared, min(g, batch - 1)) + t * vector_elements;
        const unsigned char *scale_rows[2] = {}, *zero_rows[2] = {};
        int group_steps = 1, group = 0, steps_left = 0;
        float acc[4] = {};
        for (int item = item_begin; item < item_end; ++item) {
            if (item == item_begin || k_tile == 0) {  // another row tile
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int index_in_tile = side * int4_tile_pairs + g;
                    const Int4Row row = block.row(phase, tile, index_in_tile);
                    const int slot = tile * int4_tile_rows + index_in_tile;
                    scale_rows[side] = shared + int4_scales_offset(plan) + slot * plan.scale_pitch;
                    zero_rows[side] = shared + int4_zeros_offset(plan) + slot * plan.zero_pitch;
                    if (row.row >= 0) {
                        const Int4WeightParams& weight = Op::weight(params, row.weight);
                        scale_rows[side] += block.template groups<T>(phase, row, weight.scales).skew();
                        if (weight.zeros)
                            zero_rows[side] +=
                                block.template groups<uint8_t>(phase, row, weight.zeros).skew();
                    }
                }
                int n_groups = 1;
                for (int i = 0; i < Op::n_weights; ++i) {
                    if (plan.variant_of[i] == phase.variant) n_groups = Op::weight(params, i).n_groups;
                }
                const int group_size = width / n_groups, column = phase.column + k_tile * int4_k_tile;
                group_steps = group_size / (32 * step_blocks);
                group = column / group_size - phase.column / group_size;
                steps_left = group_steps - column % group_size / (32 * step_blocks);
            }
            async_wait<int4_stages - 2>();
            warp_barrier();  // the copies of all lanes have landed, and all lanes have read the stage
                             // refilled next
            stream.copy_next();

            const unsigned char* words = stages + stage + g * int4_k_tile_pitch + t * 4;
            const T* x = x_row + k_tile * int4_k_tile;
            const int steps = min(int4_k_tile, phase.columns - k_tile * int4_k_tile) / (32 * step_blocks);
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
                                       words + int4_tile_pairs * int4_k_tile_pitch + i * 16)),
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
            if (++k_tile == phase.k_tiles ||
                item + 1 == item_end) {  // the warp's part of the row tile is complete
                int4_store_partial(sums, warp + tile, batch, acc);
                k_tile = 0;
                ++tile;
            }
        }

        // --- epilogue: add the partials, scale by the norm, finish
        timestamps.mark(TimestampPoint::streamed);
        block_barrier();  // the partials of all warps, and their squares, are in shared memory
        if (!finishes) continue;
        int4_add_partials(sums, phase.tiles * phase.k_tiles, phase.k_tiles, plan.warps, out_pair,
                          out_sequence, batch, sum_a, sum_b);
        if (phase.last_of_pairs) {
            float scale = 1;
            if (norm_weight) {
                float sum = 0;
                for (int w = 0; w < plan.warps; ++w) sum += load(squares + out_sequence * plan.warps + w);
                scale = reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
            }
            Op::finish(params, phase.first_pair + out_pair, out_sequence, extra, sum_a * scale,
                       sum_b * scale);
        }
    }
    Op::end_block(params, begin, end);
}

template <class Op>
void launch_int4_gemv(const typename Op::Params& params, const Stream& stream) {
    // Weights with the same perm tensor (or none) and the same groups share one layout of x.
    const int width = Op::width(params);
    Int4GemvSizes sizes = {
        Op::row_pairs(params), width, Op::batch(params), 1, 0, Op::norm_weight(params) != nullptr, false};
    int variant_of[int4_max_weights] = {}, step_blocks = 4;
    for (int i = 0; i < Op::n_weights; ++i) {
        const Int4WeightParams& weight = Op::weight(params, i);
        int same = 0;  // the first weight with this layout
        while (weight.perm != Op::weight(params, same).perm ||
               weight.n_groups != Op::weight(params, same).n_groups)
            ++same;
        variant_of[i] = same < i ? variant_of[same] : sizes.variants++;

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
    const PlanKey key = plan_key(params, true);
    const PlanChoice choice = planned_on_cuda(key, device_name);
    if (choice.is_made() && !int4_allows(sizes, in_order, device, choice))
        refuse_plan(key, choice, "a layout of weights and shared memory that its path has there");
    // Only an op without a norm has a kernel for clusters: its weight may be long. A table's plan has none.
    const int clusters = Op::splits_columns && !choice.is_made() ? resident_clusters().counts[2] : 0;
    const Int4GemvFastPlan fast_path =
        plan_int4_gemv_fast(sizes, in_order, stream.programmatic, device, clusters, choice);
    if constexpr (Op::splits_columns) {
        if (fast_path.fits && fast_path.ranks == 2) {
            launch_clusters(sizes.batch == 1 ? int4_gemv_fast_kernel<Op, 1, 2>
                                             : int4_gemv_fast_kernel<Op, int4_gemv_fast_max_batch, 2>,
                            2, fast_path.blocks, 32 * fast_path.warps,
                            static_cast<size_t>(fast_path.shared_bytes), stream, params, fast_path);
            return;
        }
    }
    if (fast_path.fits) {
        launch(sizes.batch == 1 ? int4_gemv_fast_kernel<Op, 1>
                                : int4_gemv_fast_kernel<Op, int4_gemv_fast_max_batch>,
               fast_path.blocks, 32 * fast_path.warps, static_cast<size_t>(fast_path.shared_bytes), stream,
               params, fast_path);
        return;
    }
    Int4GemvPlan plan = plan_int4_gemv(sizes, stream.programmatic, device, choice);
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
