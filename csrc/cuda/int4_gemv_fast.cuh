// The fast path of the int4 GEMV (int4_gemv_general.cuh is the general path). It takes what models have: up
// to four sequences, no act-order, and groups of 128 columns, of 128 times a power of two, or of a whole row.
//
// Products are integer MMA (common/int4_slices.cuh): one AND decodes a word of weights, where the general
// path's 16-bit floats take nine instructions. All warps together convert x to int8 slices once; it stays in
// shared memory in the order in which lanes read it. Warps are assigned equal numbers of consecutive K tiles.
// A warp copies whole 128-byte lines, with the scales beside them, since DRAM throughput depends on the
// number of requests. Between the first copy and the last there is no division and no barrier but the warp's:
// the kernel lasts a few microseconds, and every instruction ahead of the first copy or behind the last adds
// to it.
#pragma once

#include "cuda/common/timestamps.cuh"
#include "cuda/gemv_mainloop.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/int4_tiles.cuh"

namespace pykernels::cuda {

// A warp's copies, [stage][16 rows of 128 bytes, then their scales]. Lane t reads 16-byte vectors t and t + 4
// of a row. In odd rows the two are swapped: a swizzle that makes the reads of eight lanes in two rows free
// of bank conflicts.
// `before`: K tiles of a row before the block's.
template <class Op, int stage_count>
struct Int4LineCopies {
    using T = typename Op::T;
    static constexpr int rows_at_once = 4;  // 8 lanes a row
    static constexpr int n_stages = stage_count;
    const typename Op::Params& params;
    const Int4GemvFastPlan& plan;
    const Int4WarpItems& work;
    unsigned char* stages;
    int before;
    int item, tile, k_tile, stage = 0;
    const uint8_t* from[2][2];  // [side][half of the tile's row pairs]: this lane's 16 bytes of K tile 0
    const T* scales;            // in lanes 0 to 15, those of row `lane`

    __device__ __forceinline__ Int4LineCopies(const typename Op::Params& params, const Int4GemvFastPlan& plan,
                                              const Int4WarpItems& work, unsigned char* stages, int before)
        : params(params),
          plan(plan),
          work(work),
          stages(stages),
          before(before),
          item(work.first_item),
          tile(work.first_tile),
          k_tile(work.first_k_tile) {
        if (item < work.last_item) begin_tile();
    }

    // The row of row pair `index` of a row tile, on one of its sides. Past the last row an existing one
    // stands in: its lines are in the cache, and its sum is not used.
    __device__ __forceinline__ Int4Row row(int row_tile, int index, int side) const {
        const int pair = work.begin + min(row_tile * int4_tile_pairs + index, work.pairs - 1);
        const Int4Row found = Op::row(params, pair, side);
        return found.row < 0 ? Op::row(params, pair, 0) : found;
    }

    __device__ __forceinline__ void begin_tile() {
        // Each lane computes the address of one row; the lanes that copy the row get it by a shuffle.
        const int lane = int4_lane();
        const Int4Row own = row(tile, lane % int4_tile_pairs, lane / int4_tile_pairs % 2);
        const Int4WeightParams& weight = Op::weight(params, own.weight);
        const auto begin =
            reinterpret_cast<uintptr_t>(weight.packed + uint64_t{static_cast<uint32_t>(own.row)} *
                                                            (static_cast<uint32_t>(Op::width(params)) / 2));
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int owner = side * int4_tile_pairs + half * rows_at_once + lane / 8;
                from[side][half] =
                    reinterpret_cast<const uint8_t*>(shuffle_index(begin, owner)) + lane % 8 * 16;
            }
        }
        scales = static_cast<const T*>(weight.scales) +
                 uint64_t{static_cast<uint32_t>(own.row)} * static_cast<uint32_t>(weight.n_groups);
    }

    __device__ __forceinline__ void copy_next() {
        if (item < work.last_item) {
            const int lane = int4_lane(), row = lane / 8;
            unsigned char* to = stages + stage * int4_gemv_fast_stage_bytes;
            unsigned char* vector = to + row * int4_k_tile_bytes + (lane % 8 ^ row % 2 * 4) * 16;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    async_copy16(
                        vector + (2 * side + half) * rows_at_once * int4_k_tile_bytes,
                        from[side][half] + static_cast<uint32_t>(before + k_tile) * int4_k_tile_bytes);
                }
            }
            if (plan.group_shift == 0 && lane < int4_tile_rows) {
                async_copy4(to + int4_tile_rows * int4_k_tile_bytes + lane * 4,
                            scales + 2 * static_cast<uint32_t>(before + k_tile));
            }
            ++item;
            if (++k_tile == plan.k_tiles && item < work.last_item) {
                k_tile = 0;
                ++tile;
                begin_tile();
            }
            if (++stage == n_stages) stage = 0;
        }
        async_commit();  // a group per call, empty or not: async_wait counts groups
    }
};

// sequences: an upper bound of the batch, 1 or 4. ranks: the plan's. With two, each block of a cluster
// multiplies half of the columns of the cluster's rows; the second pushes its sums to the first.
template <class Op, int sequences, int ranks = 1>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_gemv_fast_kernel(const __grid_constant__ typename Op::Params params,
                          const __grid_constant__ Int4GemvFastPlan plan) {
    if (ranks > 1 && !has_bulk_copy) return;  // planned on sm_90 only
    Timestamps timestamps;
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.x / warp_size),
              lane = int4_lane();
    constexpr int n_stages = ranks == 1 ? int4_gemv_fast_stages : int4_gemv_split_stages;
    const int row_width = Op::width(params), width = row_width / ranks,
              batch = sequences == 1 ? 1 : Op::batch(params);
    const int cluster = static_cast<int>(blockIdx.x / ranks), rank = ranks == 1 ? 0 : cluster_rank();
    const Int4WarpItems work(plan, cluster, warp);
    const T* const norm_weight = Op::norm_weight(params);
    const T* const x = Op::x(params) + rank * width;
    const int x_column = thread * vector_elements, x_step = plan.warps * warp_size * vector_elements;
    // The epilogue's row pair and sequence of this thread. Neighbouring lanes share one, each adding some
    // partials.
    const int finish_lanes = 1 << plan.finish_lanes_log2, finisher = thread >> plan.finish_lanes_log2;
    const int out_pair = finisher / batch, out_sequence = finisher % batch;

    // --- prefetch x and the norm's weight, then weights
    Columns x_columns, norm_columns;
    int position = 0;
    if (norm_weight) norm_columns.load_from(norm_weight, x_column, width, x_step);
    if (!plan.programmatic) {
        position = Op::position(params, out_sequence);
        x_columns.load_from(x, x_column, width, x_step);
    }
    unsigned char* const stages = shared + warp * n_stages * int4_gemv_fast_stage_bytes;
    Int4LineCopies<Op, n_stages> copies(params, plan, work, stages, rank * plan.k_tiles);
#pragma unroll 1
    for (int i = 0; i < plan.stages_ahead_of_x; ++i) copies.copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    // --- mbarrier for the sums that the second block pushes. The matching cluster_wait() comes before them.
    auto* const pushed = reinterpret_cast<Mbarrier*>(shared + plan.pushed_offset);
    auto* const pushed_sums =
        reinterpret_cast<float2*>(shared + plan.pushed_offset + int4_push_barrier_bytes);
    if constexpr (ranks > 1) {
        if (thread == 0) {
            barrier_init(pushed, 1);
            barriers_ready();
        }
        warp_barrier();  // barrier.cluster.arrive is .aligned: all lanes execute it together
        if (thread == 0 && rank == 0)
            barrier_expect(pushed, static_cast<uint32_t>(work.pairs * batch) * sizeof(float2));
        warp_barrier();
        cluster_arrive();
    }

    // --- wait for the producer
    const Int4SharedMemory memory(shared, plan);
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, out_sequence);
        x_columns.load_from(x, x_column, width, x_step);
    }
#pragma unroll 1
    for (int i = plan.stages_ahead_of_x; i < n_stages - 1; ++i) copies.copy_next();

    // --- x to int8 slices in shared memory
#pragma unroll 1
    for (int b = 0; b < batch; ++b) {
        float sum = 0;
        const auto store_column = [&](int i, int column) {
            Floats8 v = unpack8<T>(x_columns.vectors[i]);
            if (norm_weight) {
                sum = dot8(v, v, sum);
                const Floats8 w = unpack8<T>(norm_columns.vectors[i]);
#pragma unroll
                for (int j = 0; j < vector_elements; ++j) v[j] *= w[j] + Op::norm_offset(params);
            }
            int4_store_x(v, static_cast<uint32_t>(column), batch, memory.x + b * int4_slices_bytes,
                         memory.factors + b * 4);
        };
#pragma unroll 1
        for (int first = x_column; first < width; first += gemv_x_vectors * x_step) {
            if (b > 0 || first != x_column) {
                x_columns.load_from(x + int64_t{b} * row_width, first, width, x_step);
                if (norm_weight) norm_columns.load_from(norm_weight, first, width, x_step);
            }
            // Apart from the loop: most layers take this path, and fewer instructions have to be fetched for
            // it.
            if (first + x_step >= width) {
                store_column(0, first);
                break;
            }
#pragma unroll
            for (int i = 0; i < gemv_x_vectors; ++i) {
                const int column = first + i * x_step;
                if (column >= width) break;
                store_column(i, column);
            }
        }
        if (norm_weight) {
            sum = warp_sum(sum);
            if (lane == 0) store(memory.squares + b * plan.warps + warp, sum);
        }
    }
    typename Op::Extra extra = {};
    if (out_pair < work.pairs) extra = Op::prepare(params, work.begin + out_pair, out_sequence, position);
    block_barrier();  // x and its squares are in shared memory
    timestamps.mark(TimestampPoint::x_ready);

    // --- mainloop
    int4_multiply_items<T, sequences>(
        plan, work, batch, memory, stages, copies, rank * plan.k_tiles, [&](int tile, int index, int side) {
            const Int4Row row = copies.row(tile, index, side);
            const Int4WeightParams& weight = Op::weight(params, row.weight);
            const int64_t first_group = int64_t{row.row} * weight.n_groups;
            return Int4GroupRows<T>{static_cast<const T*>(weight.scales) + first_group,
                                    weight.zeros ? weight.zeros + first_group : nullptr};
        });
    timestamps.mark(TimestampPoint::streamed);

    // --- epilogue: add the partials, scale by the norm, finish
    const auto norm_scale = [&](int b) {
        return norm_weight
                   ? int4_norm_scale(memory.squares + b * plan.warps, plan.warps, width, Op::eps(params))
                   : 1.0f;
    };
    float scale = norm_scale(out_sequence);

    block_barrier();                          // the partials of all warps are in shared memory
    if constexpr (ranks > 1) cluster_wait();  // the mbarrier of the first block is initialised
    const int outputs_at_once = plan.warps * warp_size >> plan.finish_lanes_log2;
    // In whole warps: the lanes of one output add their partials by shuffles.
#pragma unroll 1
    for (int first = warp * warp_size >> plan.finish_lanes_log2; first < work.pairs * batch;
         first += outputs_at_once) {
        const int i = first + (lane >> plan.finish_lanes_log2);
        const bool exists = i < work.pairs * batch;
        const auto output = static_cast<uint32_t>(exists ? i : first);
        const int pair = static_cast<int>(output / static_cast<uint32_t>(batch)),
                  b = static_cast<int>(output % static_cast<uint32_t>(batch));
        if (first >= outputs_at_once) {
            extra = Op::prepare(params, work.begin + pair, b, Op::position(params, b));
            if (batch > 1) scale = norm_scale(b);
        }
        float2 both = int4_pair_sums(plan, work, memory.sums, cluster, pair, b, batch);
        if constexpr (ranks > 1) {
            if (rank > 0) {
                if (exists && (lane & (finish_lanes - 1)) == 0)
                    push(remote_address(0, pushed_sums + i), both, remote_address(0, pushed));
                continue;
            }
            wait_for_pushes(pushed);  // no block writes here after this, so this one may also exit
            const float2 other = load(pushed_sums + output);
            both = make_float2(both.x + other.x, both.y + other.y);
        }
        if (exists && (lane & (finish_lanes - 1)) == 0)
            Op::finish(params, work.begin + pair, b, extra, both.x * scale, both.y * scale);
    }
    if (rank == 0) Op::end_block(params, work.begin, work.begin + work.pairs);
}

}  // namespace pykernels::cuda
