// GEMV of 2 to 8 sequences on tensor cores: out = epilogue(W x), at the same cost for every batch. An Op is
// gemv_mainloop.cuh's.
//
// mma.m16n8k16: A is a row tile of W, row a of 8 row pairs and then row b of each; B is x, a sequence a
// column. K is permuted alike in A and B: lane (g, t) = (lane / 4, lane % 4) takes columns 8 t to 8 t + 7 of
// every 32, 16 bytes as they lie in memory, of rows g and g + 8 of the tile and of sequence g. These are its
// fragments of two mma. C then holds, in lane (g, t), both sums of row pair g for sequences 2 t and 2 t + 1.
//
// A block takes consecutive row pairs, and each of its warps a slice of K for all of them. So a warp's part
// of x goes from global memory straight to its registers: once, where the slice is short (resident_k_tiles);
// otherwise a K tile at a time, loaded one K tile ahead. W streams through a ring of the warp's own: cp.async
// of whole 128-byte lines, four rows an instruction, and no barrier but the warp's. In shared memory the
// halves of an odd row's line are swapped, so that eight lanes reading two rows have no bank conflict. A row
// tile that is not full is filled with zeros, which read nothing.
//
// The warps' sums are added up through shared memory, 32 row pairs at a time: a lane a row pair, a warp a
// sequence. With a norm, x is multiplied by the norm's weight at once and the sum by 1 / sqrt(mean(x^2) +
// eps) at the end.
//
// Before wait_for_producers() it reads W and the norm's weight. Fewest bytes: W once; every block reads all
// of x, from L2. What limits it: memory.
#pragma once

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/gemv_mainloop.cuh"
#include "cuda/gemv_mma_plan.h"

namespace pykernels::cuda {

// A GemvMmaShape as template arguments, and what follows from it.
template <int warps_, int row_tiles_, int lines_, int stages_, int resident_k_tiles_>
struct GemvMmaTraits {
    static constexpr int warps = warps_, row_tiles = row_tiles_, lines = lines_, stages = stages_,
                         resident_k_tiles = resident_k_tiles_;
    static constexpr GemvMmaShape shape = {warps, row_tiles, lines, stages, resident_k_tiles};
    static constexpr int threads = warps * warp_size, group_pairs = row_tiles * gemv_mma_tile_pairs,
                         k_tile = shape.k_tile_columns(),
                         k_steps = k_tile / 32;  // two mma each
    static constexpr int stage_bytes = shape.stage_bytes(), sums_offset = shape.sums_offset(),
                         squares_offset = shape.squares_offset(),
                         line_tile_bytes = gemv_mma_tile_rows * gemv_mma_line_bytes;
    static_assert(gemv_mma_chunk_pairs % group_pairs == 0 && stages >= 2 && warps >= gemv_mma_max_batch);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    static constexpr bool is_compiled = gemv_mma_is_compiled(shape, gemv_mma_sm_90_bytes);
#else
    static constexpr bool is_compiled = true;
#endif
};

// A warp's copies of W, [stage][row tile][line][row of the tile][128 bytes]. K tiles of a group of row tiles
// follow one another, then the next group.
template <class Op, class Traits>
struct GemvMmaCopies {
    using T = typename Op::T;
    static constexpr int rows_at_once = 4;  // 8 lanes a row
    const typename Op::Params& params;
    const int width, first_column, end_column, end_pair, lane_row, lane_column;
    int pair, column, stage = 0;
    unsigned char* to;  // this lane's 16 bytes of the first row it copies
    // [row tile][row a or b][half of the tile's row pairs]: this lane's 16 bytes of column 0
    const T* from[Traits::row_tiles][2][2];
    uint32_t present = 0;  // a bit for each [row tile][half]: the row exists

    __device__ __forceinline__ GemvMmaCopies(const typename Op::Params& params, unsigned char* stages,
                                             int first_pair, int end_pair, int first_column, int end_column)
        : params(params),
          width(Op::width(params)),
          first_column(first_column),
          end_column(end_column),
          end_pair(first_column < end_column ? end_pair : first_pair),
          lane_row(static_cast<int>(threadIdx.x) % warp_size / 8),
          lane_column(static_cast<int>(threadIdx.x) % 8 * vector_elements),
          pair(first_pair),
          column(first_column) {
        const int swapped = static_cast<int>(threadIdx.x) % 8 ^ lane_row % 2 * 4;
        to = stages + lane_row * gemv_mma_line_bytes + swapped * 16;
        if (pair < this->end_pair) begin_group();
    }

    __device__ __forceinline__ void begin_group() {
        present = 0;
#pragma unroll
        for (int tile = 0; tile < Traits::row_tiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int of_row = pair + tile * gemv_mma_tile_pairs + half * rows_at_once + lane_row;
                present |= static_cast<uint32_t>(of_row < end_pair) << (2 * tile + half);
                const RowPair<T> rows = Op::rows(params, min(of_row, end_pair - 1));
                from[tile][0][half] = rows.a + lane_column;
                from[tile][1][half] = rows.b + lane_column;
            }
        }
    }

    __device__ __forceinline__ void copy_next() {
        if (pair < end_pair) {
            unsigned char* const stage_to = to + stage * Traits::stage_bytes;
#pragma unroll
            for (int tile = 0; tile < Traits::row_tiles; ++tile) {
#pragma unroll
                for (int side = 0; side < 2; ++side) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
#pragma unroll
                        for (int line = 0; line < Traits::lines; ++line) {
                            const int row = side * gemv_mma_tile_pairs + half * rows_at_once,
                                      of_line = column + line * gemv_mma_line_columns;
                            async_copy16_or_zeros(
                                stage_to + (tile * Traits::lines + line) * Traits::line_tile_bytes +
                                    row * gemv_mma_line_bytes,
                                from[tile][side][half] + of_line,
                                (present >> (2 * tile + half) & 1) != 0 && of_line + lane_column < width);
                        }
                    }
                }
            }
            column += Traits::k_tile;
            if (column >= end_column) {
                column = first_column;
                pair += Traits::group_pairs;
                if (pair < end_pair) begin_group();
            }
            if (++stage == Traits::stages) stage = 0;
        }
        async_commit();  // an empty group keeps the count right
    }
};

// Fragments of B: this lane's columns of n times 32 columns of x, or of the norm's weight.
template <int n>
struct GemvMmaFragments {
    uint4 steps[n];

    // Zeros from column `end` on: there A has zeros too, and zero times NaN is NaN.
    template <class T>
    __device__ __forceinline__ void load_from(const T* row, int column, int end) {
        column += static_cast<int>(threadIdx.x) % 4 * vector_elements;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const int of_step = column + 32 * i;
            steps[i] =
                of_step < end ? load(reinterpret_cast<const uint4*>(row + of_step)) : make_uint4(0, 0, 0, 0);
        }
    }

    // Times the norm's weight plus norm_offset. Returns the sum of squares before.
    template <class T>
    __device__ __forceinline__ float multiply(const GemvMmaFragments& norm_weight, float norm_offset) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            Floats8 v = unpack8<T>(steps[i]);
            const Floats8 w = unpack8<T>(norm_weight.steps[i]);
            squares = dot8(v, v, squares);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] *= w[j] + norm_offset;
            steps[i] = pack8<T>(v);
        }
        return squares;
    }
};

// acc += a K tile of a row tile, times x. row: row g of the row tile.
template <class T, class Traits>
__device__ __forceinline__ void gemv_mma_multiply(float (&acc)[4], const unsigned char* row,
                                                  const uint4* x_steps) {
    const int g = static_cast<int>(threadIdx.x) % warp_size / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < Traits::k_steps; ++i) {
        const int vector = i % 2 * 4 + t;  // of the line's eight
        const auto* from =
            reinterpret_cast<const uint4*>(row + i / 2 * Traits::line_tile_bytes) + (vector ^ g % 2 * 4);
        const uint4 a = load(from), b = load(from + gemv_mma_tile_pairs * gemv_mma_line_bytes / 16),
                    x = x_steps[i];
        matrix_multiply_add<T>(acc, {a.x, b.x, a.y, b.y}, {x.x, x.y});
        matrix_multiply_add<T>(acc, {a.z, b.z, a.w, b.w}, {x.z, x.w});
    }
}

// Index of a row pair's two sums among those of a warp. Sequences two apart swap tiles, so that lanes which
// store at once have no bank conflict.
__device__ __forceinline__ int gemv_mma_sums_index(int pair, int sequence) {
    return sequence * gemv_mma_chunk_pairs + (pair ^ sequence / 2 * gemv_mma_tile_pairs);
}

template <class Op, class Traits>
__global__ void __launch_bounds__(Traits::threads, 1)
    gemv_mma_kernel(const __grid_constant__ typename Op::Params params,
                    const __grid_constant__ GemvMmaPlan plan) {
    if constexpr (!Traits::is_compiled) return;
    Timestamps timestamps;
    using T = typename Op::T;
    constexpr bool resident = Traits::resident_k_tiles > 0;
    unsigned char* const shared = shared_memory();
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
    const int width = Op::width(params), batch = Op::batch(params), block = static_cast<int>(blockIdx.x);
    const int begin = gemv_mma_first(block, plan.block_pairs, plan.longer_blocks),
              end = gemv_mma_first(block + 1, plan.block_pairs, plan.longer_blocks);
    const int first_column = gemv_mma_first(warp, plan.slice_k_tiles, plan.longer_slices) * Traits::k_tile,
              end_column = gemv_mma_first(warp + 1, plan.slice_k_tiles, plan.longer_slices) * Traits::k_tile,
              end_x = min(end_column, width);
    const T* const norm_weight = Op::norm_weight(params);
    const T* const x_row = Op::x(params) + int64_t{min(g, batch - 1)} * width;  // g past the batch: any
    float* const squares_shared = reinterpret_cast<float*>(shared + Traits::squares_offset);

    // When row pairs are finished, this warp's sequence.
    const bool has_sequence = warp < batch;
    const int sequence = has_sequence ? warp : 0;
    int position = 0;

    // --- x where nothing has to be waited for, the norm's weight, the first stages
    constexpr int x_steps = (resident ? Traits::resident_k_tiles : 1) * Traits::k_steps;
    GemvMmaFragments<x_steps> x, norm;
    if (!plan.programmatic) {
        if (has_sequence) position = Op::position(params, sequence);
        x.load_from(x_row, first_column, end_x);
    }
    if (norm_weight) norm.load_from(norm_weight, first_column, end_x);
    unsigned char* const stages = shared + warp * Traits::stages * Traits::stage_bytes;
    GemvMmaCopies<Op, Traits> copies(params, stages, begin, end, first_column, end_column);
#pragma unroll 1
    for (int i = 0; i < Traits::stages - 1; ++i) copies.copy_next();
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer of x
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        if (has_sequence) position = Op::position(params, sequence);
        x.load_from(x_row, first_column, end_x);
    }
    const auto keep_squares = [&](float squares) {  // of the warp's slice of sequence g
        squares += shuffle_xor(squares, 1);
        squares += shuffle_xor(squares, 2);
        if (t == 0) store(squares_shared + warp * gemv_mma_max_batch + g, squares);
    };
    if (resident && norm_weight) keep_squares(x.template multiply<T>(norm, Op::norm_offset(params)));
    timestamps.mark(TimestampPoint::x_ready);

    // --- mainloop, a chunk of row pairs at a time
    float2* const sums = reinterpret_cast<float2*>(shared + Traits::sums_offset);
    constexpr int warp_sums = gemv_mma_chunk_pairs * gemv_mma_max_batch;
    int stage = 0;
    for (int chunk = begin; chunk < end; chunk += gemv_mma_chunk_pairs) {
        const int pair = chunk + lane;
        const bool finishes = has_sequence && pair < end;
        typename Op::Extra extra = {};
        if (finishes) extra = Op::prepare(params, pair, sequence, position);

        for (int group = chunk; group < min(chunk + gemv_mma_chunk_pairs, end);
             group += Traits::group_pairs) {
            float acc[Traits::row_tiles][4] = {};
            const auto multiply_next = [&](const uint4* x_steps) {
                async_wait<Traits::stages - 2>();
                warp_barrier();  // all lanes' copies of the stage are there, and nobody reads the last one
                copies.copy_next();  // to the last one
                const unsigned char* row = stages + stage * Traits::stage_bytes + g * gemv_mma_line_bytes;
#pragma unroll
                for (int tile = 0; tile < Traits::row_tiles; ++tile)
                    gemv_mma_multiply<T, Traits>(
                        acc[tile], row + tile * Traits::lines * Traits::line_tile_bytes, x_steps);
                if (++stage == Traits::stages) stage = 0;
            };
            if constexpr (resident) {
#pragma unroll
                for (int i = 0; i < Traits::resident_k_tiles; ++i) {
                    if (first_column + i * Traits::k_tile < end_column)
                        multiply_next(x.steps + i * Traits::k_steps);
                }
            } else {
                const auto load_x = [&](int column) {
                    x.load_from(x_row, column, end_x);
                    if (norm_weight) norm.load_from(norm_weight, column, end_x);
                };
                if (group != begin) load_x(first_column);
                float squares = 0;
#pragma unroll 1
                for (int column = first_column; column < end_column; column += Traits::k_tile) {
                    GemvMmaFragments<x_steps> now = x;
                    if (norm_weight) squares += now.template multiply<T>(norm, Op::norm_offset(params));
                    load_x(column + Traits::k_tile);
                    multiply_next(now.steps);
                }
                if (norm_weight && group == begin) keep_squares(squares);
            }
#pragma unroll
            for (int tile = 0; tile < Traits::row_tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int of_chunk = group - chunk + tile * gemv_mma_tile_pairs + g;
                    store(sums + warp * warp_sums + gemv_mma_sums_index(of_chunk, 2 * t + i),
                          make_float2(acc[tile][i], acc[tile][2 + i]));
                }
            }
        }

        // --- epilogue
        timestamps.mark(TimestampPoint::streamed);
        block_barrier();  // all warps' sums of the chunk are there
        if (finishes) {
            float a = 0, b = 0, scale = 1;
#pragma unroll
            for (int w = 0; w < Traits::warps; ++w) {
                const float2 of_warp = load(sums + w * warp_sums + gemv_mma_sums_index(lane, sequence));
                a += of_warp.x;
                b += of_warp.y;
            }
            if (norm_weight) {
                float squares = 0;
#pragma unroll
                for (int w = 0; w < Traits::warps; ++w)
                    squares += load(squares_shared + w * gemv_mma_max_batch + sequence);
                scale = reciprocal_sqrt(squares / static_cast<float>(width) + Op::eps(params));
            }
            Op::finish(params, pair, sequence, extra, a * scale, b * scale);
        }
        if (chunk + gemv_mma_chunk_pairs < end)
            block_barrier();  // they have been read: the next chunk's take their place
    }
    Op::end_block(params, begin, end);
}

template <class Op, class Traits>
void launch_gemv_mma(const typename Op::Params& params, const GemvMmaPlan& plan, const Stream& stream) {
    launch(gemv_mma_kernel<Op, Traits>, plan.blocks, Traits::threads, static_cast<size_t>(plan.shared_bytes),
           stream, params, plan);
}

}  // namespace pykernels::cuda
