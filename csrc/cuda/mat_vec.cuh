// The mat-vec all linear ops share: out = epilogue(W x), x of 1 to 8 rows, W streamed once from memory.
//
// A unit of work is two rows of W (which two is the op's choice: gate and up, or the two dimensions RoPE
// turns together), taken by one warp. The warp streams both rows through its ring (common/warp_ring.cuh), 512
// weights of each at a time, multiplies them with x, sums over its lanes and lets lane b finish sequence b.
// Warps never wait for one another between the norm and the end.
//
// The rings are filled before wait_for_producers(), and what follows is asked into the second-level cache:
// weights are constants, and memory works on while the kernel before this one ends. The next kernel is let in
// when the last weights are on their way, and never before this one's own wait has ended: earlier, its blocks
// would find room on some SMs only and crowd there. Least bytes: W once. What limits it: memory.
//
// An Op has: T; Params; units(p), width(p), batch(p); rows(p, unit) -> the two rows, the second may be null;
// x(p); norm_weight(p) (null: x as it is) and eps(p); Extra prepare(p, unit, b): what the end of a unit needs
// from memory, asked for at its begin; finish(p, unit, b, extra, sum of row a, sum of row b).
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

// Asks for `bytes` of each of the two rows from (unit, column) on, and for the norm's weights.
template <class Op>
__device__ __forceinline__ void prefetch(const typename Op::Params& params, int64_t unit, int64_t end,
                                         int column, int bytes) {
    if (bytes == 0 || threadIdx.x % warp_size != 0) return;
    using T = typename Op::T;
    const int width = Op::width(params);
    if (threadIdx.x == 0 && Op::norm_weight(params))
        bulk_prefetch(Op::norm_weight(params), static_cast<uint32_t>(width * sizeof(T)));
    int left = bytes / static_cast<int>(sizeof(T));
    for (; unit < end && left > 0; unit += mat_vec_warps, column = 0) {
        const int count = min(left, width - column);
        const RowPair<T> rows = Op::rows(params, unit);
        bulk_prefetch(rows.a + column, static_cast<uint32_t>(count * sizeof(T)));
        if (rows.b) bulk_prefetch(rows.b + column, static_cast<uint32_t>(count * sizeof(T)));
        left -= count;
    }
}

template <class Op, int batch_tile>
__global__ void __launch_bounds__(mat_vec_threads, 2)
    mat_vec_kernel(const __grid_constant__ typename Op::Params params,
                   const __grid_constant__ MatVecPlan plan) {
    using T = typename Op::T;
    constexpr int piece = ring_piece_bytes / static_cast<int>(sizeof(T));
    unsigned char* shared = shared_memory();
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size;
    const int width = Op::width(params), batch = Op::batch(params);
    const int64_t units = Op::units(params);
    const int64_t end =
        mat_vec_first_unit(units, static_cast<int>(blockIdx.x) + 1, static_cast<int>(gridDim.x));
    const int64_t begin =
        mat_vec_first_unit(units, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)) + warp;

    WarpRing ring(shared + warp * ring_bytes(plan.n_stages),
                  reinterpret_cast<TransactionBarrier*>(shared + mat_vec_barriers_offset(plan.n_stages)) +
                      warp * plan.n_stages,
                  plan.n_stages);
    warp_barrier();  // lane 0 has made the ring's barriers

    // The producing end of the stream: which piece is copied next.
    int64_t next_unit = begin;
    int next_column = 0;
    RowPair<T> next_rows = {};
    if (next_unit < end) next_rows = Op::rows(params, next_unit);
    bool waited = false;
    const auto issue_next = [&] {
        if (next_unit >= end) {
            if (warp == 0 && waited) launch_dependents();
            ring.issue(nullptr, nullptr, 0);
            return;
        }
        const int count = width - next_column < piece ? width - next_column : piece;
        ring.issue(next_rows.a + next_column, next_rows.b ? next_rows.b + next_column : nullptr,
                   count * static_cast<int>(sizeof(T)));
        next_column += piece;
        if (next_column >= width) {
            next_column = 0;
            next_unit += mat_vec_warps;
            if (next_unit < end) next_rows = Op::rows(params, next_unit);
        }
    };
    for (int i = 0; i < ring.n_stages(); ++i) issue_next();
    prefetch<Op>(params, next_unit, end, next_column, plan.prefetch_bytes);
    wait_for_producers();
    waited = true;
    if (warp == 0 && next_unit >= end) launch_dependents();

    const T* x = Op::x(params);
    if (plan.x_in_shared) {
        T* x_shared = reinterpret_cast<T*>(shared + mat_vec_x_offset(plan.n_stages, batch));
        stage_x<Op>(params, x_shared,
                    reinterpret_cast<float*>(shared + mat_vec_scratch_offset(plan.n_stages)));
        x = x_shared;
    }

    for (int64_t unit = begin; unit < end; unit += mat_vec_warps) {
        const bool both = Op::rows(params, unit).b != nullptr;
        typename Op::Extra extra = {};
        if (lane < batch) extra = Op::prepare(params, unit, lane);
        float sums[batch_tile][2] = {};
        for (int column = 0; column < width; column += piece) {
            const T* weights = reinterpret_cast<const T*>(ring.wait());
#pragma unroll
            for (int i = 0; i < piece; i += warp_size * vector_elements) {
                const int element = i + lane * vector_elements;
                if (column + element < width) {
                    const Floats8 a = load8(weights + element);
                    const Floats8 b = both ? load8(weights + piece + element) : Floats8{};
#pragma unroll
                    for (int row = 0; row < batch_tile; ++row) {
                        // A tile larger than the batch repeats its last row.
                        const int x_row = row < batch ? row : batch - 1;
                        const Floats8 v = load8(x + x_row * width + column + element);
                        sums[row][0] = dot8(a, v, sums[row][0]);
                        sums[row][1] = dot8(b, v, sums[row][1]);
                    }
                }
            }
            ring.release();
            issue_next();
        }
        float mine_a = 0, mine_b = 0;
#pragma unroll
        for (int row = 0; row < batch_tile; ++row) {
            const float a = warp_sum(sums[row][0]), b = warp_sum(sums[row][1]);
            if (lane == row) {
                mine_a = a;
                mine_b = b;
            }
        }
        if (lane < batch) Op::finish(params, unit, lane, extra, mine_a, mine_b);
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
    for (int64_t unit = int64_t{blockIdx.x} * mat_vec_warps + warp; unit < Op::units(params);
         unit += int64_t{gridDim.x} * mat_vec_warps) {
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
                                         Op::norm_weight(params) != nullptr, vectors, stream.programmatic,
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
