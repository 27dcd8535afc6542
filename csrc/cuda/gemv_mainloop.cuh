// The GEMV all linear ops share: out = epilogue(W x), x of 1 to 8 rows, W streamed once from memory.
//
// A unit of work is two rows of W (which two is the op's choice: gate and up, or the two dimensions RoPE
// turns together). A block takes consecutive units and deals them out to its teams of two warps; a thread of
// a team has the columns 8 i to 8 i + 7 of every 512. A thread copies its own columns to shared memory, five
// stages ahead (cp.async), and nobody else reads them: the stream needs no barrier, and no warp waits for
// another. x lies in shared memory. A warp's sums over its lanes go there too; at the end of a chunk (all of
// a block's units, unless there are many) a thread a unit and sequence adds the team's up and finishes.
//
// With a norm, x is multiplied by the norm's weight at once and by 1 / sqrt(mean(x^2) + eps) at the very end,
// a factor of every sum: nothing waits for the mean.
//
// The stream begins before wait_for_producers(): weights are constants, and 160 KB a SM of them are on their
// way while the kernel before this one ends. The norm's weight is asked for before them, and x too where
// nothing has to be waited for: behind them it would take microseconds. Least bytes: W once. What limits it:
// memory.
//
// An Op has: T; Params; units(p), width(p), batch(p); rows(p, unit) -> the two rows, which may be one;
// x(p); norm_weight(p) (null: x as it is) and eps(p); position(p, b): of a sequence, 0 where it has none;
// Extra prepare(p, unit, b, position): what the end of a unit needs from memory, as it comes from there and
// asked for at the begin of its chunk (to work on it would be to wait for it); finish(p, unit, b, extra, sum
// of row a, sum of row b).
#pragma once

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/gemv_plan.h"

namespace pykernels::cuda {

template <class T>
struct RowPair {
    const T* a;
    const T* b;
};

// Vectors of x that a thread has on their way at once: all of a row of 20,480.
constexpr int gemv_x_vectors = 5;

// A thread's columns of a row of x on their way: column first, then every `step`-th.
struct Columns {
    uint4 vectors[gemv_x_vectors];

    template <class T>
    __device__ __forceinline__ void load_from(const T* row, uint32_t first, uint32_t width,
                                              uint32_t step = gemv_x_step) {
        const uint4* from = reinterpret_cast<const uint4*>(row) + first / vector_elements;
#pragma unroll
        for (int i = 0; i < gemv_x_vectors; ++i) {
            if (first < width) vectors[i] = load(from);
            first += step;
            from += step / vector_elements;
        }
    }

    // To a row of shared memory (null: nowhere), times the norm's weight, which lies in the thread's columns
    // of another row (null: no norm). Returns the sum of squares.
    template <class T>
    __device__ __forceinline__ float keep(T* to, const T* norm_weight, int first, int width) const {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < gemv_x_vectors; ++i) {
            const int column = first + i * gemv_x_step;
            if (column >= width) break;
            if (norm_weight) {
                Floats8 v = unpack8<T>(vectors[i]);
                squares = dot8(v, v, squares);
                if (!to) continue;
                const Floats8 w = load8(norm_weight + column);
#pragma unroll
                for (int j = 0; j < 8; ++j) v[j] *= w[j];
                store8(to + column, v);
            } else if (to) {
                store(reinterpret_cast<uint4*>(to + column), vectors[i]);
            }
        }
        return squares;
    }
};

template <class Op, int batch_tile, int vectors>
__global__ void __launch_bounds__(gemv_threads, 1)
    gemv_kernel(const __grid_constant__ typename Op::Params params, const __grid_constant__ GemvPlan plan) {
    Timestamps timestamps;
    using T = typename Op::T;
    constexpr int piece = vectors * gemv_step;      // columns of a stage
    constexpr bool x_always_shared = vectors == 2;  // as plans are made
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int team = warp / gemv_team_warps, team_warp = warp % gemv_team_warps;
    const int width = Op::width(params), batch = Op::batch(params);
    const int units = Op::units(params), block = static_cast<int>(blockIdx.x),
              blocks = static_cast<int>(gridDim.x);
    const int begin = gemv_first_unit(units, block, blocks), end = gemv_first_unit(units, block + 1, blocks);
    const int column = (team_warp * warp_size + lane) * vector_elements;  // of a row, this thread's first
    const int x_column = thread * vector_elements;                        // of x, likewise

    T* const x_shared = reinterpret_cast<T*>(shared + gemv_x_offset(plan, batch));
    // The norm's weight waits where the last sequence's x will be.
    T* const norm_shared = x_shared + (batch - 1) * width;
    const T* const norm_weight = Op::norm_weight(params);
    Columns x_columns;
    const int my_sequence = thread % batch;  // when units are finished
    int position = 0;
    if (!plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }
    if (norm_weight && plan.x_in_shared) {
        for (int i = x_column; i < width; i += gemv_x_step) async_copy16(norm_shared + i, norm_weight + i);
    }
    async_commit();

    // The stream, [stage][row a or b][vector][thread]. What is copied next:
    uint4* const stream = reinterpret_cast<uint4*>(shared) + thread;
    constexpr int stage_vectors = 2 * vectors * gemv_threads;
    int next_unit = begin + team, next_piece = 0, next_stage = 0;
    RowPair<T> next_rows = {};
    if (next_unit < end) next_rows = Op::rows(params, next_unit);
    const auto copy_next = [&] {
        if (next_unit < end) {
            uint4* to = stream + next_stage * stage_vectors;
#pragma unroll
            for (int i = 0; i < vectors; ++i) {
                const int from = next_piece + column + i * gemv_step;
                if (from < width) {
                    async_copy16(to + i * gemv_threads, next_rows.a + from);
                    async_copy16(to + (vectors + i) * gemv_threads, next_rows.b + from);
                }
            }
            next_piece += piece;
            if (next_piece >= width) {
                next_piece = 0;
                next_unit += gemv_teams;
                if (next_unit < end) next_rows = Op::rows(params, next_unit);
            }
            if (++next_stage == gemv_stages) next_stage = 0;
        }
        async_commit();  // an empty group keeps the count right
    };
#pragma unroll 1
    for (int i = 0; i < gemv_stages - 1; ++i) copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }
    if (norm_weight) async_wait<gemv_stages - 1>();  // the norm's weight is there
    for (int b = 0; b < batch; ++b) {
        if (b > 0 && !plan.x_in_shared && !norm_weight) break;
        float squares = 0;
        for (int first = x_column; first < width; first += gemv_x_vectors * gemv_x_step) {
            if (b > 0 || first != x_column)
                x_columns.load_from(Op::x(params) + int64_t{b} * width, first, width);
            squares += x_columns.keep(plan.x_in_shared ? x_shared + b * width : nullptr,
                                      norm_weight ? norm_shared : nullptr, first, width);
        }
        if (norm_weight) {
            const float sum = warp_sum(squares);
            if (lane == 0)
                store(reinterpret_cast<float*>(shared + gemv_squares_offset(plan)) + b * gemv_warps + warp,
                      sum);
        }
    }
    const T* x = x_always_shared || plan.x_in_shared ? x_shared : Op::x(params);
    block_barrier();  // x is there, and its squares
    timestamps.mark(TimestampPoint::x_ready);

    // [warp of a team][unit of the chunk][sequence]: the sums of rows a and b
    float2* sums = reinterpret_cast<float2*>(shared + gemv_sums_offset(plan));
    int stage = 0;
    for (int chunk = begin; chunk < end; chunk += plan.chunk_units) {
        const int count = min(end - chunk, plan.chunk_units);
        const bool finishes = thread < count * batch;
        const int my_unit = chunk + thread / batch;
        typename Op::Extra extra = {};
        if (finishes) extra = Op::prepare(params, my_unit, my_sequence, position);

        for (int unit = team; unit < count; unit += gemv_teams) {
            float mine[batch_tile][2] = {};
            for (int first = 0; first < width; first += piece) {
                async_wait<gemv_stages - 2>();
                copy_next();  // over the stage before this one, which this thread is done with
                const uint4* weights = stream + stage * stage_vectors;
#pragma unroll
                for (int i = 0; i < vectors; ++i) {
                    const int at = first + column + i * gemv_step;
                    if (at >= width) break;
                    const Floats8 a = unpack8<T>(load(weights + i * gemv_threads));
                    const Floats8 b = unpack8<T>(load(weights + (vectors + i) * gemv_threads));
#pragma unroll
                    for (int row = 0; row < batch_tile; ++row) {
                        // A tile larger than the batch repeats its last row.
                        Floats8 v = load8(x + min(row, batch - 1) * width + at);
                        if (!x_always_shared && norm_weight && !plan.x_in_shared) {
                            const Floats8 w = load8(norm_weight + at);
#pragma unroll
                            for (int j = 0; j < 8; ++j) v[j] *= w[j];
                        }
                        mine[row][0] = dot8(a, v, mine[row][0]);
                        mine[row][1] = dot8(b, v, mine[row][1]);
                    }
                }
                if (++stage == gemv_stages) stage = 0;
            }
#pragma unroll
            for (int row = 0; row < batch_tile; ++row) {
                const float sum = warp_sum_pair(mine[row][0], mine[row][1]);
                if (lane % (warp_size / 2) == row && row < batch) {
                    float2* to = sums + team_warp * gemv_threads + unit * batch + row;
                    store(reinterpret_cast<float*>(to) + lane / (warp_size / 2), sum);
                }
            }
        }

        timestamps.mark(TimestampPoint::streamed);
        block_barrier();  // all teams' sums of the chunk are there
        if (finishes) {
            float a = 0, b = 0, scale = 1;
#pragma unroll
            for (int w = 0; w < gemv_team_warps; ++w) {
                const float2 theirs = load(sums + w * gemv_threads + thread);
                a += theirs.x;
                b += theirs.y;
            }
            if (norm_weight) {
                const float* squares = reinterpret_cast<const float*>(shared + gemv_squares_offset(plan)) +
                                       my_sequence * gemv_warps;
                float sum = 0;
#pragma unroll
                for (int w = 0; w < gemv_warps; ++w) sum += load(squares + w);
                scale = reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
            }
            Op::finish(params, my_unit, my_sequence, extra, a * scale, b * scale);
        }
        if (chunk + plan.chunk_units < end)
            block_barrier();  // they have been read: the next chunk's take their place
    }
}

// Any width and alignment: element by element, the norm taken by every warp for itself. For shapes no model
// has, and without timestamps.
template <class Op>
__global__ void __launch_bounds__(gemv_threads)
    gemv_plain_kernel(const __grid_constant__ typename Op::Params params) {
    using T = typename Op::T;
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size;
    const int width = Op::width(params);
    const T* norm_weight = Op::norm_weight(params);
    wait_for_producers();
    launch_dependents();
    for (int unit = static_cast<int>(blockIdx.x) * gemv_warps + warp; unit < Op::units(params);
         unit += static_cast<int>(gridDim.x) * gemv_warps) {
        const RowPair<T> rows = Op::rows(params, unit);
        for (int b = 0; b < Op::batch(params); ++b) {
            const T* x = Op::x(params) + int64_t{b} * width;
            float scale = 1.0f;
            if (norm_weight) {
                float squares = 0;
                for (int i = lane; i < width; i += warp_size) squares += load1(x + i) * load1(x + i);
                scale = reciprocal_sqrt(warp_sum(squares) / static_cast<float>(width) + Op::eps(params));
            }
            float sum_a = 0, sum_b = 0;
#pragma unroll 2
            for (int i = lane; i < width; i += warp_size) {
                float v = load1(x + i);
                if (norm_weight) v = to_float(from_float<T>(v * scale * load1(norm_weight + i)));
                sum_a += load1(rows.a + i) * v;
                sum_b += load1(rows.b + i) * v;
            }
            sum_a = warp_sum(sum_a);
            sum_b = warp_sum(sum_b);
            if (lane == 0)
                Op::finish(params, unit, b, Op::prepare(params, unit, b, Op::position(params, b)), sum_a,
                           sum_b);
        }
    }
}

// `aligned`: every row of every operand begins on 16 bytes.
template <class Op>
void launch_gemv(const typename Op::Params& params, bool aligned, const Stream& stream) {
    const DeviceLimits& limits = device_limits();
    const GemvPlan plan = plan_gemv(Op::units(params), Op::width(params), Op::batch(params), aligned,
                                    stream.programmatic, {limits.sm_count, limits.shared_bytes});
    const auto run = [&](auto kernel) {
        launch(kernel, plan.blocks, gemv_threads, static_cast<size_t>(plan.shared_bytes), stream, params,
               plan);
    };
    if (!plan.streamed) {
        launch(gemv_plain_kernel<Op>, plan.blocks, gemv_threads, 0, stream, params);
    } else if (plan.vectors == 2) {
        run(gemv_kernel<Op, 1, 2>);
    } else {
        with_batch(Op::batch(params),
                   [&](auto batch_tile) { run(gemv_kernel<Op, decltype(batch_tile)::value, 1>); });
    }
}

}  // namespace pykernels::cuda
