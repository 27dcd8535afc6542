// The mat-vec all linear ops share: out = epilogue(W x), x of 1 to 8 rows, W streamed once from memory.
//
// A unit of work is two rows of W (which two is the op's choice: gate and up, or the two dimensions RoPE
// turns together). A block takes consecutive units; each of its warps takes an eighth of the columns of all
// of them, and streams it through its ring (common/warp_ring.cuh). So all warps are busy to the end whatever
// the shape, and a block reads whole rows, one after another. A warp's sums over its lanes go to shared
// memory; at the end of a chunk (all of a block's units, unless there are many) a thread a unit and sequence
// adds the warps' up and finishes. Warps never wait for one another between the norm and the end of a chunk.
//
// The rings are filled before wait_for_producers(): weights are constants, and some 150 KB a SM of them are
// on their way while the kernel before this one ends. Least bytes: W once. What limits it: memory.
//
// An Op has: T; Params; units(p), width(p), batch(p); rows(p, unit) -> the two rows, the second may be null;
// x(p); norm_weight(p) (null: x as it is) and eps(p); Extra prepare(p, unit, b): what the end of a unit needs
// from memory, asked for at the begin of its chunk; finish(p, unit, b, extra, sum of row a, sum of row b).
#pragma once

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/warp_ring.cuh"
#include "cuda/mat_vec_plan.h"

namespace pykernels::cuda {

template <class T>
struct RowPair {
    const T* a;
    const T* b;
};

// Vectors of x that a thread has on their way at once: all of a row of 20,480.
constexpr int stage_vectors = 10;

// x * rsqrt(mean(x^2) + eps) * norm_weight for all rows, into shared memory, rounded to T as a standalone
// rmsnorm would. Or x copied there.
template <class Op>
__device__ __forceinline__ void stage_x(const typename Op::Params& params, typename Op::T* x_shared,
                                        float* scratch) {
    using T = typename Op::T;
    const int width = Op::width(params), batch = Op::batch(params);
    const T* norm_weight = Op::norm_weight(params);
    constexpr int step = mat_vec_threads * vector_elements;
    const int first = static_cast<int>(threadIdx.x) * vector_elements;
    const auto vector = [](const T* row, int i) { return reinterpret_cast<const uint4*>(row + i); };
    for (int b = 0; b < batch; ++b) {
        const T* x = Op::x(params) + b * width;
        T* to = x_shared + b * width;
        float squares = 0;
        for (int begin = first; begin < width; begin += stage_vectors * step) {
            uint4 raw[stage_vectors];
#pragma unroll
            for (int i = 0; i < stage_vectors; ++i) {
                if (begin + i * step < width) raw[i] = load(vector(x, begin + i * step));
            }
#pragma unroll
            for (int i = 0; i < stage_vectors; ++i) {
                if (begin + i * step >= width) break;
                store(reinterpret_cast<uint4*>(to + begin + i * step), raw[i]);
                if (norm_weight) {
                    const Floats8 v = unpack8<T>(raw[i]);
                    squares = dot8(v, v, squares);
                }
            }
        }
        if (norm_weight) {
            const float total = block_sum(squares, scratch + b * mat_vec_warps);
            const float scale = reciprocal_sqrt(total / static_cast<float>(width) + Op::eps(params));
            for (int i = first; i < width; i += step) {  // what this thread stored
                Floats8 v = load8(to + i);
                const Floats8 w = load8(norm_weight + i);
#pragma unroll
                for (int j = 0; j < 8; ++j) v[j] = v[j] * scale * w[j];
                store8(to + i, v);
            }
        }
    }
    block_barrier();  // all of x is there
}

template <class Op, int batch_tile>
__global__ void __launch_bounds__(mat_vec_threads)
    mat_vec_kernel(const __grid_constant__ typename Op::Params params,
                   const __grid_constant__ MatVecPlan plan) {
    using T = typename Op::T;
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int width = Op::width(params), batch = Op::batch(params);
    const int units = Op::units(params), block = static_cast<int>(blockIdx.x),
              blocks = static_cast<int>(gridDim.x);
    const int begin = mat_vec_first_unit(units, block, blocks),
              end = mat_vec_first_unit(units, block + 1, blocks);
    const int first_column = min(width, warp * plan.slice);
    const int columns = min(width, first_column + plan.slice) - first_column;

    WarpRing ring(
        shared + warp * ring_bytes(plan.n_stages, plan.piece * static_cast<int>(sizeof(T))),
        reinterpret_cast<TransactionBarrier*>(shared + mat_vec_barriers_offset(plan)) + warp * plan.n_stages,
        plan.n_stages, plan.piece * static_cast<int>(sizeof(T)));
    warp_barrier();  // lane 0 has made the ring's barriers

    // The producing end of the stream: which piece is copied next.
    int next_unit = columns > 0 ? begin : end;
    int next_column = 0;
    RowPair<T> next_rows = {};
    if (next_unit < end) next_rows = Op::rows(params, next_unit);
    const auto issue_next = [&] {
        if (next_unit >= end) {
            ring.issue(nullptr, nullptr, 0);
            return;
        }
        const int from = first_column + next_column;
        ring.issue(next_rows.a + from, next_rows.b ? next_rows.b + from : nullptr,
                   min(columns - next_column, plan.piece) * static_cast<int>(sizeof(T)));
        next_column += plan.piece;
        if (next_column >= columns) {
            next_column = 0;
            if (++next_unit < end) next_rows = Op::rows(params, next_unit);
        }
    };
    for (int i = 0; i < ring.n_stages(); ++i) issue_next();
    wait_for_producers();
    launch_dependents();

    const T* x = Op::x(params);
    if (plan.x_in_shared) {
        T* x_shared = reinterpret_cast<T*>(shared + mat_vec_x_offset(plan, batch));
        stage_x<Op>(params, x_shared, reinterpret_cast<float*>(shared + mat_vec_norm_offset(plan)));
        x = x_shared;
    }
    x += first_column;

    // [warp][unit of the chunk][sequence]: the sums of rows a and b
    float2* sums = reinterpret_cast<float2*>(shared + mat_vec_sums_offset(plan, batch));
    for (int chunk = begin; chunk < end; chunk += plan.chunk_units) {
        const int count = min(end - chunk, plan.chunk_units);
        const bool finishes = thread < count * batch;
        const int my_unit = chunk + thread / batch;
        typename Op::Extra extra = {};
        if (finishes) extra = Op::prepare(params, my_unit, thread % batch);

        for (int unit = 0; unit < count; ++unit) {
            const bool both = Op::rows(params, chunk + unit).b != nullptr;
            float mine[batch_tile][2] = {};
            for (int column = 0; column < columns; column += plan.piece) {
                const T* weights = reinterpret_cast<const T*>(ring.wait());
                const int here = min(columns - column, plan.piece);
#pragma unroll(batch_tile == 1 ? 4 : 1)
                for (int i = lane * vector_elements; i < here; i += warp_size * vector_elements) {
                    const Floats8 a = load8(weights + i);
                    const Floats8 b = both ? load8(weights + plan.piece + i) : Floats8{};
#pragma unroll
                    for (int row = 0; row < batch_tile; ++row) {
                        // A tile larger than the batch repeats its last row.
                        const Floats8 v = load8(x + min(row, batch - 1) * width + column + i);
                        mine[row][0] = dot8(a, v, mine[row][0]);
                        mine[row][1] = dot8(b, v, mine[row][1]);
                    }
                }
                ring.release();
                issue_next();
            }
#pragma unroll
            for (int row = 0; row < batch_tile; ++row) {
                const float a = warp_sum(mine[row][0]), b = warp_sum(mine[row][1]);
                if (lane == row && row < batch)
                    store(sums + warp * mat_vec_threads + unit * batch + row, make_float2(a, b));
            }
        }

        block_barrier();  // all warps' sums of the chunk are there
        if (finishes) {
            float a = 0, b = 0;
#pragma unroll
            for (int w = 0; w < mat_vec_warps; ++w) {
                const float2 theirs = load(sums + w * mat_vec_threads + thread);
                a += theirs.x;
                b += theirs.y;
            }
            Op::finish(params, my_unit, thread % batch, extra, a, b);
        }
        if (chunk + plan.chunk_units < end)
            block_barrier();  // they have been read: the next chunk's take their place
    }
}

// Any width and alignment, and x that shared memory cannot hold: element by element, the norm taken by every
// warp for itself. For shapes no model has.
template <class Op>
__global__ void __launch_bounds__(mat_vec_threads)
    mat_vec_plain_kernel(const __grid_constant__ typename Op::Params params) {
    using T = typename Op::T;
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size;
    const int width = Op::width(params);
    const T* norm_weight = Op::norm_weight(params);
    wait_for_producers();
    launch_dependents();
    for (int unit = static_cast<int>(blockIdx.x) * mat_vec_warps + warp; unit < Op::units(params);
         unit += static_cast<int>(gridDim.x) * mat_vec_warps) {
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
            for (int i = lane; i < width; i += warp_size) {
                float v = load1(x + i);
                if (norm_weight) v = to_float(from_float<T>(v * scale * load1(norm_weight + i)));
                sum_a += load1(rows.a + i) * v;
                if (rows.b) sum_b += load1(rows.b + i) * v;
            }
            sum_a = warp_sum(sum_a);
            sum_b = warp_sum(sum_b);
            if (lane == 0) Op::finish(params, unit, b, Op::prepare(params, unit, b), sum_a, sum_b);
        }
    }
}

// `vectors`: every row of every operand begins on 16 bytes.
template <class Op>
void launch_mat_vec(const typename Op::Params& params, bool vectors, const Stream& stream) {
    const DeviceLimits& limits = device_limits();
    const MatVecPlan plan = plan_mat_vec(Op::units(params), Op::width(params), Op::batch(params),
                                         Op::norm_weight(params) != nullptr, vectors,
                                         {limits.sm_count, limits.shared_bytes, limits.sm_90});
    if (!plan.streamed) {
        launch(mat_vec_plain_kernel<Op>, plan.blocks, mat_vec_threads, 0, stream, params);
        return;
    }
    with_batch(Op::batch(params), [&](auto batch_tile) {
        launch(mat_vec_kernel<Op, decltype(batch_tile)::value>, plan.blocks, mat_vec_threads,
               static_cast<size_t>(plan.shared_bytes), stream, params, plan);
    });
}

}  // namespace pykernels::cuda
