// What a block of an int4 GEMV (int4_gemv.cuh) needs beside the stream of its weights: which rows are
// its own in a phase, their scales and zero points in shared memory, and x there.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/int4_gemv_plan.h"
#include "params.h"

namespace pykernels::cuda {

// Row `row` of the op's weight `weight`; -1: there is none.
struct Int4Row {
    int weight, row;
};

// One phase (int4_gemv_plan.h) of a block.
struct Int4Phase {
    int first_unit, units, tiles, variant, column, columns, pieces;
    bool first_of_units, last_of_units, counts_squares;

    __device__ __forceinline__ Int4Phase(const Int4GemvPlan& plan, int width, int begin, int end, int index) {
        // Divisions are spared where they are the rule: the stream waits for this.
        const int of_units = plan.variants * plan.panels;
        const int chunk = of_units == 1 ? index : index / of_units, rest = index - chunk * of_units;
        variant = of_units == 1 ? 0 : rest / plan.panels;
        const int panel = rest - variant * plan.panels;
        first_unit = begin + chunk * plan.phase_units;
        units = min(end - first_unit, plan.phase_units);
        tiles = int4_tiles(units);
        column = panel * plan.panel;
        columns = min(width - column, plan.panel);
        pieces = (columns + int4_piece - 1) / int4_piece;
        first_of_units = panel == 0 && variant == 0;
        counts_squares = first_unit == begin && variant == 0;
        last_of_units = panel == plan.panels - 1 && variant == plan.variants - 1;
    }
    __device__ __forceinline__ int first_item(int warp, int warps) const {
        return int4_first_item(tiles * pieces, warp, warps);
    }
};

// A row of scales or zero points, from its group `first` on. It begins anywhere: `skew` bytes into its slot,
// which is copied by aligned 16 bytes.
template <class Element>
struct Int4GroupRow {
    const Element *begin, *end;  // of the tensor
    const Element* row;
    int count;

    __device__ __forceinline__ int skew() const {
        return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16);
    }
    // Every `share`-th 16 bytes of the slot. At the tensor's ends, where 16 bytes would reach past it,
    // element by element.
    __device__ __forceinline__ void copy(unsigned char* slot, int first, int share) const {
        constexpr int elements = 16 / sizeof(Element);
        const Element* from = row + (first - skew()) / static_cast<int>(sizeof(Element));
        for (int place = first; from < row + count; place += share * 16, from += share * elements) {
            if (from >= begin && from + elements <= end) {
                async_copy16(slot + place, from);
                continue;
            }
#pragma unroll 1
            for (int i = 0; i < elements; ++i) {
                if (from + i >= row && from + i < row + count)
                    store(reinterpret_cast<Element*>(slot + place) + i, load(from + i));
            }
        }
    }
};

// A warp's sums of its part of a tile, as the tensor core leaves them, to the part's slot [row][sequence];
// they begin anew.
__device__ __forceinline__ void int4_keep_part(float* sums, int part, int batch, float (&acc)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
    float* to = sums + part * int4_tile_rows * batch;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = i / 2 * int4_tile_units + g, sequence = 2 * t + i % 2;
        if (sequence < batch) store(to + row * batch + sequence, acc[i]);
        acc[i] = 0;
    }
}

// Adds a unit's parts up, in the order of the warps: of both its rows.
__device__ __forceinline__ void int4_add_parts(const float* sums, int items, int pieces, int warps, int unit,
                                               int sequence, int batch, float& sum_a, float& sum_b) {
    const int tile = unit / int4_tile_units;
    const int last = int4_warp_of(items, (tile + 1) * pieces - 1, warps);
    for (int w = int4_warp_of(items, tile * pieces, warps); w <= last; ++w) {
        if (int4_first_item(items, w, warps) == int4_first_item(items, w + 1, warps)) continue;
        const float* from = sums + ((w + tile) * int4_tile_rows + unit % int4_tile_units) * batch + sequence;
        sum_a += load(from);
        sum_b += load(from + int4_tile_units * batch);
    }
}

template <class Op>
struct Int4Block {
    using T = typename Op::T;
    using Params = typename Op::Params;
    const Params& params;
    const Int4GemvPlan& plan;

    // Row `place` of a tile: the units' first rows, then their second ones. -1: none, or one that reads x in
    // another way than the phase's.
    __device__ __forceinline__ Int4Row row(const Int4Phase& phase, int tile, int place) const {
        const int unit = tile * int4_tile_units + place % int4_tile_units;
        if (unit >= phase.units) return {0, -1};
        Int4Row at = Op::row(params, phase.first_unit + unit, place / int4_tile_units);
        if (Op::n_weights > 1 && plan.variant_of[at.weight] != phase.variant) at.row = -1;
        return at;
    }

    // Where a row's columns of the phase begin; of no row where the weight does.
    __device__ __forceinline__ const uint8_t* packed(const Int4Phase& phase, Int4Row at) const {
        const uint8_t* weight = Op::weight(params, at.weight).packed;
        return at.row < 0 ? weight : weight + (int64_t{at.row} * Op::width(params) + phase.column) / 2;
    }

    template <class Element>
    __device__ __forceinline__ Int4GroupRow<Element> groups(const Int4Phase& phase, Int4Row at,
                                                            const void* tensor) const {
        const int n_groups = Op::weight(params, at.weight).n_groups, size = Op::width(params) / n_groups;
        const int first = phase.column / size, last = (phase.column + phase.columns - 1) / size;
        const auto* begin = static_cast<const Element*>(tensor);
        return {begin, begin + int64_t{Op::weight_rows(params, at.weight)} * n_groups,
                begin + int64_t{at.row} * n_groups + first, last - first + 1};
    }

    // Asks for the scales and zero points of a phase's rows. Those of no row are 0. As many threads as there
    // are share a row.
    __device__ __forceinline__ void copy_groups(const Int4Phase& phase, unsigned char* shared) const {
        const int rows = phase.tiles * int4_tile_rows;
        int share_bits = 0;
        while (rows << (share_bits + 1) <= static_cast<int>(blockDim.x)) ++share_bits;
        const int share = 1 << share_bits, first = static_cast<int>(threadIdx.x) % share * 16;
        for (int i = static_cast<int>(threadIdx.x); i < rows * share; i += static_cast<int>(blockDim.x)) {
            const int place = i >> share_bits;
            const Int4Row at = row(phase, place / int4_tile_rows, place % int4_tile_rows);
            const Int4WeightParams& weight = Op::weight(params, at.weight);
            unsigned char* scale_slot = shared + int4_scales_offset(plan) + place * plan.scale_pitch;
            unsigned char* zero_slot = shared + int4_zeros_offset(plan) + place * plan.zero_pitch;
            if (at.row < 0) {
                fill(scale_slot, first, share, plan.scale_pitch, 0);
                fill(zero_slot, first, share, plan.zero_pitch, 0);
                continue;
            }
            groups<T>(phase, at, weight.scales).copy(scale_slot, first, share);
            if (weight.zeros)
                groups<uint8_t>(phase, at, weight.zeros).copy(zero_slot, first, share);
            else  // beside a weight that has them, if at all
                fill(zero_slot, first, share, plan.zero_pitch, 0x08080808);
        }
    }

    __device__ static __forceinline__ void fill(unsigned char* slot, int first, int share, int bytes,
                                                uint32_t word) {
        for (int place = first; place < bytes; place += share * 16)
            store(reinterpret_cast<uint4*>(slot + place), make_uint4(word, word, word, word));
    }

    // The way in which a variant's weights read x; null: in order.
    __device__ __forceinline__ const int32_t* perm(int variant) const {
        const int32_t* result = nullptr;
        for (int i = Op::n_weights - 1; i >= 0; --i) {
            if (plan.variant_of[i] == variant) result = Op::weight(params, i).perm;
        }
        return result;
    }

    // Row b of x in shared memory; behind the last one the norm's weight.
    __device__ __forceinline__ T* x_row(unsigned char* shared, int b) const {
        return reinterpret_cast<T*>(shared + int4_x_offset(plan, Op::batch(params)) + b * plan.x_pitch);
    }

    // Asks for a phase's columns of rows first to last - 1, as they lie.
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

    // What a thread copied of x, or gathers now, times the norm's weight. Sums of squares go to shared
    // memory, those of panels added up.
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
                                      : gather(x, order, phase.column + i);
                if (norm_weight) {
                    const uint4 norm = copied ? load(reinterpret_cast<const uint4*>(x_row(shared, batch) + i))
                                              : gather(norm_weight, order, phase.column + i);
                    Floats8 v = unpack8<T>(values);
                    const Floats8 w = unpack8<T>(norm);
                    sum = dot8(v, v, sum);
#pragma unroll
                    for (int j = 0; j < vector_elements; ++j) v[j] *= w[j];
                    values = pack8<T>(v);
                }
                store(reinterpret_cast<uint4*>(to + i), values);
            }
            if (norm_weight && phase.counts_squares) {
                sum = warp_sum(sum);
                float* mine = squares + b * plan.warps;
                if (threadIdx.x % warp_size == 0) store(mine, phase.column > 0 ? load(mine) + sum : sum);
            }
        }
    }

    __device__ static __forceinline__ int thread_column() {
        return static_cast<int>(threadIdx.x) * vector_elements;
    }
    __device__ static __forceinline__ int thread_columns() {
        return static_cast<int>(blockDim.x) * vector_elements;
    }

    __device__ static __forceinline__ uint4 gather(const T* row, const int32_t* perm, int column) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int even = column + 2 * i, odd = even + 1;
            words[i] = load(row + (perm ? load(perm + even) : even)).bits |
                       static_cast<uint32_t>(load(row + (perm ? load(perm + odd) : odd)).bits) << 16;
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
};

}  // namespace pykernels::cuda
