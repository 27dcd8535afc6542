// The int4 mat-vec (int4_mat_vec.cuh) of the usual case, which is the models': one phase, x in order, groups
// of 128 columns, of a power of two times 128, or of a whole row. The same tiles, shares and rounding, in a
// tenth of the instructions before the first copy: a kernel of some microseconds pays for every one that has
// to be fetched.
//
// Of 128 neighbouring columns lane t of four has 16 bytes of a row, columns 32 t to 32 t + 31. It copies
// those itself and nobody else reads them: the stream has no barrier, not even a warp's. x lies in shared
// memory in the order in which the lanes read it. Scales and zero points come through the first-level cache,
// asked for a product before they are used.
#pragma once

#include "cuda/common/int4_decode.cuh"
#include "cuda/int4_block.cuh"
#include "cuda/mat_vec.cuh"

#include <cstring>
#include <type_traits>

namespace pykernels::cuda {

// Where a column of x lies: of every 128, [word of a lane's four][lane of four][8].
__device__ __forceinline__ int int4_x_place(int column) {
    return column / 128 * 128 + column % 32 / 8 * 32 + column % 128 / 32 * 8 + column % 8;
}

// A group's scales, or zero points, of a piece's two chunks of 128 columns: neighbours where a group is a
// chunk, else one for both.
template <class Element>
struct Int4Pair {
    Element values[2];

    __device__ __forceinline__ void load_from(const Element* row, int piece, int group_shift) {
        if (group_shift == 0) {
            using Word = std::conditional_t<sizeof(Element) == 2, uint32_t, uint16_t>;
            const Word word = load(reinterpret_cast<const Word*>(row) + piece);
            memcpy(values, &word, sizeof word);
        } else {
            values[0] = values[1] = load(row + (2 * piece >> group_shift));
        }
    }
};

// zeros: some weight has zero points; otherwise all are 8.
template <class Op, bool zeros>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_one_phase_kernel(const __grid_constant__ typename Op::Params params,
                          const __grid_constant__ Int4OnePhasePlan plan) {
    using T = typename Op::T;
    constexpr int threads = int4_max_threads, stage_vectors = 4 * threads;
    static_assert(threads == mat_vec_threads, "x is taken as the other mat-vecs take it");
    unsigned char* shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    const int g = lane / 4, t = lane % 4;
    const int width = Op::width(params), batch = Op::batch(params), units = Op::units(params);
    const int begin = mat_vec_first_unit(units, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)),
              count =
                  mat_vec_first_unit(units, static_cast<int>(blockIdx.x) + 1, static_cast<int>(gridDim.x)) -
                  begin;
    const int pieces = plan.pieces, items = int4_tiles(count) * pieces;
    const int first_item = int4_first_item(items, warp, int4_max_warps),
              last_item = int4_first_item(items, warp + 1, int4_max_warps);
    const int first_tile = first_item / pieces;

    const int block_units = (units + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    T* const x_shared = reinterpret_cast<T*>(shared + int4_one_phase_x_offset(block_units, batch));
    const int x_pitch = plan.x_pitch / 2;
    T* const norm_shared = x_shared + batch * x_pitch;
    const T* const norm_weight = Op::norm_weight(params);
    const int x_column = thread * vector_elements;
    const int my_unit = thread / batch, my_sequence = thread % batch;  // when units are finished
    Columns x_columns;
    int position = 0;
    if (!plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }
    if (norm_weight) {
        for (int i = x_column; i < width; i += mat_vec_x_step) async_copy16(norm_shared + i, norm_weight + i);
    }
    async_commit();

    // Row g of a tile, of its units' first rows (side 0), or row g + 8, of their second ones. Where there is
    // none, one that is there: in one place with its neighbours', it costs nothing, and nobody asks for its
    // sum.
    const auto row_of = [&](int tile, int side) {
        const int unit = begin + min(tile * int4_tile_units + g, count - 1);
        const Int4Row at = Op::row(params, unit, side);
        return at.row < 0 ? Op::row(params, unit, 0) : at;
    };

    // The stream, [stage][row g or g + 8][chunk of 128 columns][thread]. What is copied next:
    uint4* const stream = reinterpret_cast<uint4*>(shared) + thread;
    int next_item = first_item, next_tile = first_tile, next_piece = first_item - first_tile * pieces,
        next_stage = 0;
    const uint8_t* from[2] = {};
    const auto begin_tile = [&] {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const Int4Row at = row_of(next_tile, side);
            from[side] = Op::weight(params, at.weight).packed + int64_t{at.row} * (width / 2) +
                         next_piece * int4_piece_bytes + t * 16;
        }
    };
    if (next_item < last_item) begin_tile();
    const auto copy_next = [&] {
        if (next_item < last_item) {
            uint4* to = stream + next_stage * stage_vectors;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                async_copy16(to + 2 * side * threads, from[side]);
                async_copy16(to + (2 * side + 1) * threads, from[side] + int4_piece_bytes / 2);
                from[side] += int4_piece_bytes;
            }
            ++next_item;
            if (++next_piece == pieces && next_item < last_item) {
                next_piece = 0;
                ++next_tile;
                begin_tile();
            }
            if (++next_stage == int4_one_phase_stages) next_stage = 0;
        }
        async_commit();  // an empty group keeps the count right
    };
#pragma unroll 1
    for (int i = 0; i < int4_one_phase_stages - 1; ++i) copy_next();

    wait_for_producers();
    launch_dependents();
    if (plan.programmatic) {
        position = Op::position(params, my_sequence);
        x_columns.load_from(Op::x(params), x_column, width);
    }
    if (norm_weight) async_wait<int4_one_phase_stages - 1>();  // the norm's weight is there
    float* squares = reinterpret_cast<float*>(shared + int4_one_phase_squares_offset(block_units, batch));
#pragma unroll 1
    for (int b = 0; b < batch; ++b) {
        float sum = 0;
        for (int first = x_column; first < width; first += mat_vec_x_vectors * mat_vec_x_step) {
            if (b > 0 || first != x_column)
                x_columns.load_from(Op::x(params) + int64_t{b} * width, first, width);
            sum += x_columns.keep(x_shared + b * x_pitch, norm_weight ? norm_shared : nullptr, first, width,
                                  [](int column) { return int4_x_place(column); });
        }
        if (norm_weight) {
            sum = warp_sum(sum);
            if (lane == 0) store(squares + b * int4_max_warps + warp, sum);
        }
    }
    const bool finishes = my_unit < count;
    typename Op::Extra extra = {};
    if (finishes) extra = Op::prepare(params, begin + my_unit, my_sequence, position);
    block_barrier();  // x is there, and its squares

    float* sums = reinterpret_cast<float*>(shared + int4_one_phase_sums_offset());
    const T* x_row = x_shared + min(g, batch - 1) * x_pitch + t * vector_elements;
    const T* scale_row[2] = {};
    const uint8_t* zero_row[2] = {};
    float acc[4] = {};
    int tile = first_tile, piece = first_item - first_tile * pieces, stage = 0;
#pragma unroll 1
    for (int item = first_item; item < last_item; ++item) {
        if (item == first_item || piece == 0) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const Int4Row at = row_of(tile, side);
                const Int4WeightParams& weight = Op::weight(params, at.weight);
                const int64_t first_group = int64_t{at.row} * weight.n_groups;
                scale_row[side] = static_cast<const T*>(weight.scales) + first_group;
                if (zeros) zero_row[side] = weight.zeros ? weight.zeros + first_group : nullptr;
            }
        }
        Int4Pair<T> scales[2];
        Int4Pair<uint8_t> zero_points[2] = {{{8, 8}}, {{8, 8}}};
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            scales[side].load_from(scale_row[side], piece, plan.group_shift);
            if (zeros && zero_row[side]) zero_points[side].load_from(zero_row[side], piece, plan.group_shift);
        }
        async_wait<int4_one_phase_stages - 2>();
        copy_next();  // over the stage before this one, which this thread is done with
        const uint4* words = stream + stage * stage_vectors;
        const T* x = x_row + piece * int4_piece;
#pragma unroll
        for (int chunk = 0; chunk < 2; ++chunk) {
            const uint4 a_words = load(words + chunk * threads),
                        b_words = load(words + (2 + chunk) * threads);
            const uint32_t zero_a = int4_negative_zero<T>(zero_points[0].values[chunk]),
                           zero_b = int4_negative_zero<T>(zero_points[1].values[chunk]);
            float c[2][4] = {};  // two sums, which do not wait for one another
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t a[4], b[4];
                int4_decode<T>(word(a_words, i), zero_a, a);
                int4_decode<T>(word(b_words, i), zero_b, b);
                const uint4 v = load(reinterpret_cast<const uint4*>(x + chunk * 128 + i * 32));
                matrix_multiply_add<T>(c[0], {a[0], b[0], a[1], b[1]}, {v.x, v.y});
                matrix_multiply_add<T>(c[1], {a[2], b[2], a[3], b[3]}, {v.z, v.w});
            }
            const float scale_a = to_float(scales[0].values[chunk]) * Int4Code<T>::steps,
                        scale_b = to_float(scales[1].values[chunk]) * Int4Code<T>::steps;
            acc[0] += scale_a * (c[0][0] + c[1][0]);
            acc[1] += scale_a * (c[0][1] + c[1][1]);
            acc[2] += scale_b * (c[0][2] + c[1][2]);
            acc[3] += scale_b * (c[0][3] + c[1][3]);
        }
        if (++stage == int4_one_phase_stages) stage = 0;
        if (++piece == pieces || item + 1 == last_item) {  // this warp's part of the tile is done
            int4_keep_part(sums, warp + tile, batch, acc);
            piece = 0;
            ++tile;
        }
    }

    block_barrier();  // all warps' sums are there
    if (!finishes) return;
    float sum_a = 0, sum_b = 0, scale = 1;
    int4_add_parts(sums, items, pieces, int4_max_warps, my_unit, my_sequence, batch, sum_a, sum_b);
    if (norm_weight) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < int4_max_warps; ++w) sum += load(squares + my_sequence * int4_max_warps + w);
        scale = reciprocal_sqrt(sum / static_cast<float>(width) + Op::eps(params));
    }
    Op::finish(params, begin + my_unit, my_sequence, extra, sum_a * scale, sum_b * scale);
}

}  // namespace pykernels::cuda
