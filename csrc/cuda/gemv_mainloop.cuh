// The GEMV mainloop of the dense linear ops on CUDA cores: out = epilogue(W x), x of one row, W read once.
//
// Work is divided into row pairs: two rows of W, chosen by the op (gate and up, or the two dimensions that
// RoPE rotates together). A block is assigned consecutive row pairs; its warp groups of two warps take them
// in turn. A thread of a warp group has columns 8 i to 8 i + 7 of every 512. It copies its own columns to
// shared memory with cp.async, five stages deep. No other thread reads them, so the mainloop has no barrier
// and no warp waits for another. x is in shared memory. Each warp stores its partial sums there; at the end
// of a chunk (all row pairs of the block, unless there are many) one thread per row pair and sequence adds
// the warp group's partials and runs the epilogue.
//
// With a norm, x is multiplied by the norm's weight as it is loaded, and the sums by 1 / sqrt(mean(x^2) +
// eps) in the epilogue, so that nothing waits for the mean.
//
// Copies of W start before griddepcontrol.wait, since weights are constants: 160 KB an SM are in flight while
// the previous kernel ends. The norm's weight is issued ahead of them, and so is x where nothing has to be
// waited for: behind them it would arrive microseconds later. Fewest bytes: W once. Limit: memory bandwidth.
//
// An Op has: T; Params; row_pairs(p), width(p), batch(p); rows(p, pair): the two rows, which may be the same;
// x(p); norm_weight(p) (null: no norm) and eps(p); position(p, b) of a sequence, 0 where the op has none;
// Extra prepare(p, pair, b, position): the epilogue's operands as loaded, issued at the beginning of the
// chunk (converting them there would wait for them); finish(p, pair, b, extra, sum of row a, sum of row b);
// end_block(p, begin, end), which all threads call when the block has finished its row pairs begin to end
// - 1; behind a block barrier it may use shared memory from its beginning, a float a warp. norm_offset(p) is
// added to the norm's weight.
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

// Vectors of x that a thread has in flight: the whole of a row of 20,480 columns.
constexpr int gemv_x_vectors = 5;

// A thread's columns of a row of x, loads in flight: columns `first`, then every `step`-th.
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

    // Stores the columns to a row of shared memory (null: does not), times those of the norm's weight plus
    // norm_offset (null: no norm). Returns the sum of squares, 0 without a norm.
    template <class T>
    __device__ __forceinline__ float store_to(T* to, const T* norm_weight, float norm_offset, int first,
                                              int width) const {
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
                for (int j = 0; j < 8; ++j) v[j] *= w[j] + norm_offset;
                store8(to + column, v);
            } else if (to) {
                store(reinterpret_cast<uint4*>(to + column), vectors[i]);
            }
        }
        return squares;
    }
};

// What is here for several sequences, of which there is one (gemv_mma.cuh multiplies several), stays until
// the kernel is measured without it: without it its SASS is another.
template <class Op, int vectors>
__global__ void __launch_bounds__(gemv_threads, 1)
    gemv_kernel(const __grid_constant__ typename Op::Params params, const __grid_constant__ GemvPlan plan) {
    Timestamps timestamps;
    using T = typename Op::T;
    constexpr int k_tile = vectors * gemv_step;     // columns of a stage
    constexpr bool x_always_shared = vectors == 2;  // plan_gemv has two vectors only then
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int group = warp / gemv_group_warps, group_warp = warp % gemv_group_warps;
    const int width = Op::width(params), batch = Op::batch(params);
    const int pairs = Op::row_pairs(params), block = static_cast<int>(blockIdx.x),
              blocks = static_cast<int>(gridDim.x);
    const int begin = gemv_first_pair(pairs, block, blocks), end = gemv_first_pair(pairs, block + 1, blocks);
    const int column = (group_warp * warp_size + lane) * vector_elements;  // this thread's first of a row
    const int x_column = thread * vector_elements;                         // this thread's first of x

    // --- prefetch x and the norm's weight
    T* const x_shared = reinterpret_cast<T*>(shared + gemv_x_offset(plan, batch));
    // The norm's weight is kept in the last row of x until that row is stored.
    T* const norm_shared = x_shared + (batch - 1) * width;
    const T* const norm_weight = Op::norm_weight(params);
    Columns x_columns;
    const int out_sequence = thread % batch;  // of this thread in the epilogue
    int position = 0;
    if (!plan.programmatic) {
        position = Op::position(params, out_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }
    if (norm_weight && plan.x_in_shared) {
        for (int i = x_column; i < width; i += gemv_x_step) async_copy16(norm_shared + i, norm_weight + i);
    }
    async_commit();

    // --- prefetch weights to the stages, [stage][row a or b][vector][thread]
    uint4* const stream = reinterpret_cast<uint4*>(shared) + thread;
    constexpr int stage_vectors = 2 * vectors * gemv_threads;
    int next_pair = begin + group, next_column = 0, next_stage = 0;
    RowPair<T> next_rows = {};
    if (next_pair < end) next_rows = Op::rows(params, next_pair);
    const auto copy_next = [&] {
        if (next_pair < end) {
            uint4* to = stream + next_stage * stage_vectors;
#pragma unroll
            for (int i = 0; i < vectors; ++i) {
                const int from = next_column + column + i * gemv_step;
                if (from < width) {
                    async_copy16(to + i * gemv_threads, next_rows.a + from);
                    async_copy16(to + (vectors + i) * gemv_threads, next_rows.b + from);
                }
            }
            next_column += k_tile;
            if (next_column >= width) {
                next_column = 0;
                next_pair += gemv_groups;
                if (next_pair < end) next_rows = Op::rows(params, next_pair);
            }
            if (++next_stage == gemv_stages) next_stage = 0;
        }
        async_commit();  // a group per call, empty or not: async_wait counts groups
    };
#pragma unroll 1
    for (int i = 0; i < gemv_stages - 1; ++i) copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, out_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }

    // --- x to shared memory, its squares
    if (norm_weight) async_wait<gemv_stages - 1>();  // this thread's part of the norm's weight has landed
    for (int b = 0; b < batch; ++b) {
        if (b > 0 && !plan.x_in_shared && !norm_weight) break;
        float squares = 0;
        for (int first = x_column; first < width; first += gemv_x_vectors * gemv_x_step) {
            if (b > 0 || first != x_column)
                x_columns.load_from(Op::x(params) + int64_t{b} * width, first, width);
            squares += x_columns.store_to(plan.x_in_shared ? x_shared + b * width : nullptr,
                                          norm_weight ? norm_shared : nullptr, Op::norm_offset(params), first,
                                          width);
        }
        if (norm_weight) {
            const float sum = warp_sum(squares);
            if (lane == 0)
                store(reinterpret_cast<float*>(shared + gemv_squares_offset(plan)) + b * gemv_warps + warp,
                      sum);
        }
    }
    const T* x = x_always_shared || plan.x_in_shared ? x_shared : Op::x(params);
    block_barrier();  // x and its squares are in shared memory
    timestamps.mark(TimestampPoint::x_ready);

    // [warp of a group][row pair of the chunk][sequence]: the partial sums of rows a and b
    float2* sums = reinterpret_cast<float2*>(shared + gemv_sums_offset(plan));
    int stage = 0;
    for (int chunk = begin; chunk < end; chunk += plan.chunk_pairs) {
        const int count = min(end - chunk, plan.chunk_pairs);
        const bool finishes = thread < count * batch;
        const int out_pair = chunk + thread / batch;
        typename Op::Extra extra = {};
        if (finishes) extra = Op::prepare(params, out_pair, out_sequence, position);

        // --- mainloop
        for (int pair = group; pair < count; pair += gemv_groups) {
            float acc[2] = {};
            for (int first = 0; first < width; first += k_tile) {
                async_wait<gemv_stages - 2>();
                copy_next();  // into the stage before this one, which this thread has read
                const uint4* weights = stream + stage * stage_vectors;
#pragma unroll
                for (int i = 0; i < vectors; ++i) {
                    const int x_offset = first + column + i * gemv_step;
                    if (x_offset >= width) break;
                    const Floats8 a = unpack8<T>(load(weights + i * gemv_threads));
                    const Floats8 b = unpack8<T>(load(weights + (vectors + i) * gemv_threads));
                    Floats8 v = load8(x + min(0, batch - 1) * width + x_offset);
                    if (!x_always_shared && norm_weight && !plan.x_in_shared) {
                        const Floats8 w = load8(norm_weight + x_offset);
#pragma unroll
                        for (int j = 0; j < 8; ++j) v[j] *= w[j] + Op::norm_offset(params);
                    }
                    acc[0] = dot8(a, v, acc[0]);
                    acc[1] = dot8(b, v, acc[1]);
                }
                if (++stage == gemv_stages) stage = 0;
            }
            const float sum = warp_sum_pair(acc[0], acc[1]);
            if (lane % (warp_size / 2) == 0 && batch > 0) {
                float2* to = sums + group_warp * gemv_threads + pair * batch;
                store(reinterpret_cast<float*>(to) + lane / (warp_size / 2), sum);
            }
        }

        // --- epilogue: add the partials, scale by the norm, finish
        timestamps.mark(TimestampPoint::streamed);
        block_barrier();  // the partials of the chunk are in shared memory
        if (finishes) {
            float a = 0, b = 0, scale = 1;
#pragma unroll
            for (int w = 0; w < gemv_group_warps; ++w) {
                const float2 partial = load(sums + w * gemv_threads + thread);
                a += partial.x;
                b += partial.y;
            }
            if (norm_weight) {
                const float* squares = reinterpret_cast<const float*>(shared + gemv_squares_offset(plan)) +
                                       out_sequence * gemv_warps;
                float sum = 0;
#pragma unroll
                for (int w = 0; w < gemv_warps; ++w) sum += load(squares + w);
                scale = reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
            }
            Op::finish(params, out_pair, out_sequence, extra, a * scale, b * scale);
        }
        if (chunk + plan.chunk_pairs < end)
            block_barrier();  // the partials have been read: those of the next chunk overwrite them
    }
    Op::end_block(params, begin, end);
}

// For any width and alignment: element by element, each warp computes the norm. No model has such shapes. It
// has no timestamps.
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
    const int pairs = Op::row_pairs(params), block = static_cast<int>(blockIdx.x),
              blocks = static_cast<int>(gridDim.x);
    const int begin = gemv_first_pair(pairs, block, blocks), end = gemv_first_pair(pairs, block + 1, blocks);
    for (int pair = begin + warp; pair < end; pair += gemv_warps) {
        const RowPair<T> rows = Op::rows(params, pair);
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
                if (norm_weight)
                    v = to_float(
                        from_float<T>(v * scale * (load1(norm_weight + i) + Op::norm_offset(params))));
                sum_a += load1(rows.a + i) * v;
                sum_b += load1(rows.b + i) * v;
            }
            sum_a = warp_sum(sum_a);
            sum_b = warp_sum(sum_b);
            if (lane == 0)
                Op::finish(params, pair, b, Op::prepare(params, pair, b, Op::position(params, b)), sum_a,
                           sum_b);
        }
    }
    Op::end_block(params, begin, end);
}

}  // namespace pykernels::cuda
