// The general path's (int4_gemv_general.cuh) work per block beside the weights: the rows of a phase, and
// their scales, zero points and x in shared memory.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/int4_gemv_plan.h"
#include "params.h"

namespace pykernels::cuda {

// Row `row` of the op's weight number `weight`; row is -1 past the last row.
struct Int4Row {
    int weight, row;
};

// One phase (int4_gemv_plan.h) of a block.
struct Int4Phase {
    int first_pair, pairs, tiles, variant, column, columns, k_tiles;
    bool first_of_pairs, last_of_pairs, counts_squares;  // the first, and the last, phase of these row pairs

    __device__ __forceinline__ Int4Phase(const Int4GemvPlan& plan, int width, int begin, int end, int index) {
        // No division in the usual case: the first copies wait for this.
        const int phases_of_pairs = plan.variants * plan.panels;
        const int chunk = phases_of_pairs == 1 ? index : index / phases_of_pairs,
                  rest = index - chunk * phases_of_pairs;
        variant = phases_of_pairs == 1 ? 0 : rest / plan.panels;
        const int panel = rest - variant * plan.panels;
        first_pair = begin + chunk * plan.phase_pairs;
        pairs = min(end - first_pair, plan.phase_pairs);
        tiles = int4_row_tiles(pairs);
        column = panel * plan.panel;
        columns = min(width - column, plan.panel);
        k_tiles = (columns + int4_k_tile - 1) / int4_k_tile;
        first_of_pairs = panel == 0 && variant == 0;
        counts_squares = first_pair == begin && variant == 0;
        last_of_pairs = panel == plan.panels - 1 && variant == plan.variants - 1;
    }
    __device__ __forceinline__ int first_item(int warp, int warps) const {
        return int4_first_item(tiles * k_tiles, warp, warps);
    }
};

// A row of scales or zero points, from the phase's first group on. It may have any alignment: aligned 16-byte
// vectors are copied, so that the row begins `skew` bytes into its slot.
template <class Element>
struct Int4GroupRow {
    const Element *begin, *end;  // of the tensor
    const Element* row;
    int count;

    __device__ __forceinline__ int skew() const {
        return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16);
    }
    // Copies the slot's vectors from byte offset `first` on, every `lanes`-th. At the tensor's ends, where a
    // vector would reach past it, element by element.
    __device__ __forceinline__ void copy(unsigned char* slot, int first, int lanes) const {
        constexpr int elements = 16 / sizeof(Element);
        const Element* from = row + (first - skew()) / static_cast<int>(sizeof(Element));
        for (int offset = first; from < row + count; offset += lanes * 16, from += lanes * elements) {
            if (from >= begin && from + elements <= end) {
                async_copy16(slot + offset, from);
                continue;
            }
#pragma unroll 1
            for (int i = 0; i < elements; ++i) {
                if (from + i >= row && from + i < row + count)
                    store(reinterpret_cast<Element*>(slot + offset) + i, load(from + i));
            }
        }
    }
};

// Stores a warp's accumulators, in the MMA's layout of c, to the partial's slot [row][sequence], and zeroes
// them.
__device__ __forceinline__ void int4_store_partial(float* sums, int partial, int batch, float (&acc)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
    float* to = sums + partial * int4_tile_rows * batch;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = i / 2 * int4_tile_pairs + g, sequence = 2 * t + i % 2;
        if (sequence < batch) store(to + row * batch + sequence, acc[i]);
        acc[i] = 0;
    }
}

// Adds the partials of both rows of a row pair, in the order of the warps.
__device__ __forceinline__ void int4_add_partials(const float* sums, int items, int k_tiles, int warps,
                                                  int pair, int sequence, int batch, float& sum_a,
                                                  float& sum_b) {
    const int tile = pair / int4_tile_pairs;
    const int last = int4_warp_of(items, (tile + 1) * k_tiles - 1, warps);
    for (int w = int4_warp_of(items, tile * k_tiles, warps); w <= last; ++w) {
        if (int4_first_item(items, w, warps) == int4_first_item(items, w + 1, warps)) continue;
        const float* from = sums + ((w + tile) * int4_tile_rows + pair % int4_tile_pairs) * batch + sequence;
        sum_a += load(from);
        sum_b += load(from + int4_tile_pairs * batch);
    }
}

template <class Op>
struct Int4Block {
    using T = typename Op::T;
    using Params = typename Op::Params;
    const Params& params;
    const Int4GemvPlan& plan;

    // Row `index` of a row tile: first rows of the row pairs, then second ones. -1: past the last row pair,
    // or of a weight of another variant than the phase's.
    __device__ __forceinline__ Int4Row row(const Int4Phase& phase, int tile, int index) const {
        const int pair = tile * int4_tile_pairs + index % int4_tile_pairs;
        if (pair >= phase.pairs) return {0, -1};
        Int4Row found = Op::row(params, phase.first_pair + pair, index / int4_tile_pairs);
        if (Op::n_weights > 1 && plan.variant_of[found.weight] != phase.variant) found.row = -1;
        return found;
    }

    // The first of a row's columns in the phase; for row -1 the beginning of the weight.
    __device__ __forceinline__ const uint8_t* packed(const Int4Phase& phase, Int4Row row) const {
        const uint8_t* weight = Op::weight(params, row.weight).packed;
        return row.row < 0 ? weight : weight + (int64_t{row.row} * Op::width(params) + phase.column) / 2;
    }

    template <class Element>
    __device__ __forceinline__ Int4GroupRow<Element> groups(const Int4Phase& phase, Int4Row row,
                                                            const void* tensor) const {
        const int n_groups = Op::weight(params, row.weight).n_groups, size = Op::width(params) / n_groups;
        const int first = phase.column / size, last = (phase.column + phase.columns - 1) / size;
        const auto* begin = static_cast<const Element*>(tensor);
        return {begin, begin + int64_t{Op::weight_rows(params, row.weight)} * n_groups,
                begin + int64_t{row.row} * n_groups + first, last - first + 1};
    }

    // Issues copies of the scales and zero points of a phase's rows; those of row -1 are 0. 2^lanes_log2
    // threads share a row, as many as there are.
    __device__ __forceinline__ void copy_groups(const Int4Phase& phase, unsigned char* shared) const {
        const int rows = phase.tiles * int4_tile_rows;
        int lanes_log2 = 0;
        while (rows << (lanes_log2 + 1) <= static_cast<int>(blockDim.x)) ++lanes_log2;
        const int lanes = 1 << lanes_log2, first = static_cast<int>(threadIdx.x) % lanes * 16;
        for (int i = static_cast<int>(threadIdx.x); i < rows * lanes; i += static_cast<int>(blockDim.x)) {
            const int slot = i >> lanes_log2;
            const Int4Row slot_row = row(phase, slot / int4_tile_rows, slot % int4_tile_rows);
            const Int4WeightParams& weight = Op::weight(params, slot_row.weight);
            unsigned char* scale_slot = shared + int4_scales_offset(plan) + slot * plan.scale_pitch;
            unsigned char* zero_slot = shared + int4_zeros_offset(plan) + slot * plan.zero_pitch;
            if (slot_row.row < 0) {
                fill(scale_slot, first, lanes, plan.scale_pitch, 0);
                fill(zero_slot, first, lanes, plan.zero_pitch, 0);
                continue;
            }
            groups<T>(phase, slot_row, weight.scales).copy(scale_slot, first, lanes);
            if (weight.zeros)
                groups<uint8_t>(phase, slot_row, weight.zeros).copy(zero_slot, first, lanes);
            else  // another weight of the op has zero points, or none has and zero_pitch is 0
                fill(zero_slot, first, lanes, plan.zero_pitch, 0x08080808);
        }
    }

    __device__ static __forceinline__ void fill(unsigned char* slot, int first, int lanes, int bytes,
                                                uint32_t word) {
        for (int offset = first; offset < bytes; offset += lanes * 16)
            store(reinterpret_cast<uint4*>(slot + offset), make_uint4(word, word, word, word));
    }

    // The order in which a variant's weights read x; null: as it is stored.
    __device__ __forceinline__ const int32_t* perm(int variant) const {
        const int32_t* result = nullptr;
        for (int i = Op::n_weights - 1; i >= 0; --i) {
            if (plan.variant_of[i] == variant) result = Op::weight(params, i).perm;
        }
        return result;
    }

    // Row b of x in shared memory; row `batch` is the norm's weight.
    __device__ __forceinline__ T* x_row(unsigned char* shared, int b) const {
        return reinterpret_cast<T*>(shared + int4_x_offset(plan, Op::batch(params)) + b * plan.x_pitch);
    }

    // Issues copies of a phase's columns of rows first to last - 1, where no perm applies.
    __device__ __forceinline__ void copy_x(const Int4Phase& phase, unsigned char* shared, int first,
                                           int last) const {
        if (!plan.x_is_vectors || perm(phase.variant)) return;
        for (int b = first; b < last; ++b) {
            const T* from = b < Op::batch(params) ? Op::x(params) + int64_t{b} * Op::width(params)
                                                  : Op::norm_weight(params);
            for (int i = thread_column(); i < phase.columns; i += thread_columns())
                async_copy16(x_row(shared, b) + i, from + phase.column + i);
        }
    }

    // Multiplies what a thread copied of x, or gathers here, by the norm's weight. Sums of squares go to
    // shared memory, added over panels.
    __device__ __forceinline__ void finish_x(const Int4Phase& phase, unsigned char* shared) const {
        const int batch = Op::batch(params);
        const int32_t* order = perm(phase.variant);
        const bool copied = plan.x_is_vectors && !order;
        const T* norm_weight = Op::norm_weight(params);
        if (copied && !norm_weight) return;
        float* squares = reinterpret_cast<float*>(shared + int4_squares_offset(plan, batch)) +
                         static_cast<int>(threadIdx.x) / warp_size;
        for (int b = 0; b < batch; ++b) {
            const T* x = Op::x(params) + int64_t{b} * Op::width(params);
            T* to = x_row(shared, b);
            float sum = 0;
            for (int i = thread_column(); i < phase.columns; i += thread_columns()) {
                uint4 values = copied ? load(reinterpret_cast<const uint4*>(to + i))
                                      : gather(x, order, phase.column + i, Op::width(params));
                if (norm_weight) {
                    const uint4 norm = copied
                                           ? load(reinterpret_cast<const uint4*>(x_row(shared, batch) + i))
                                           : gather(norm_weight, order, phase.column + i, Op::width(params));
                    Floats8 v = unpack8<T>(values);
                    const Floats8 w = unpack8<T>(norm);
                    sum = dot8(v, v, sum);
#pragma unroll
                    for (int j = 0; j < vector_elements; ++j) v[j] *= w[j] + Op::norm_offset(params);
                    values = pack8<T>(v);
                }
                store(reinterpret_cast<uint4*>(to + i), values);
            }
            if (norm_weight && phase.counts_squares) {
                sum = warp_sum(sum);
                float* warp_squares = squares + b * plan.warps;
                if (threadIdx.x % warp_size == 0)
                    store(warp_squares, phase.column > 0 ? load(warp_squares) + sum : sum);
            }
        }
    }

    __device__ static __forceinline__ int thread_column() {
        return static_cast<int>(threadIdx.x) * vector_elements;
    }
    __device__ static __forceinline__ int thread_columns() {
        return static_cast<int>(blockDim.x) * vector_elements;
    }

    // Columns column to column + 7 in the order of perm, if any; row has `width` columns.
    __device__ static __forceinline__ uint4 gather(const T* row, const int32_t* perm, int column, int width) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int even = column + 2 * i, odd = even + 1;
            words[i] =
                load(row + (perm ? clamp_index(load(perm + even), width) : even)).bits |
                static_cast<uint32_t>(load(row + (perm ? clamp_index(load(perm + odd), width) : odd)).bits)
                    << 16;
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
};

}  // namespace pykernels::cuda
