// x in the order in which the nibbles of a 4-bit weight come out of their words.
//
// A tile is 8 * lanes neighbouring elements of a row: one vector of words, eight elements a word. Shifting
// the words by 4i leaves, in every word, one pair of elements (docs/int4.md), so word by word: elements 8 *
// word + 2i and 8 * word + 2i + 1. x is laid out likewise once, by the caller's thread, before the rows are
// streamed; a tile of a row of x is
//
//   with bf16 dot products   [i = 0..3][word]       pairs of bf16: elements 8 * word + 2i, 8 * word + 2i + 1
//   bf16 without them        integers, below
//   otherwise                [nibble = 0..7][word]  float32: element 8 * word + order[nibble]
//
// As integers, a tile of x is step * (128 * high + low), rounded: 15 bits and a sign of one step, a power of
// two, so that the products with the nibbles are int8 ones (vpmaddubsw) and their sums exact. The largest
// element keeps all 8 bits of a bf16 and 7 more. A result is wrong by less than the tile's largest
// element * 2^-15 * the sum of |w|: under bf16's own rounding, but not under fp16's or float32's, which stay
// float32.
//
//   int8   [high, low][even, odd nibbles][word][4]   of a word's bytes, the elements of their nibbles
//   int32  [word]                                    8 * the sum of the word's elements, which q has too much
//                                                    where q - 8 is meant
//   float  [word]                                    the step, once a word
//
// stored as [tile][batch], so that rows do not compete for the same sets of the L1. Rows are padded with
// zeros to whole tiles. Behind them are the sums of x over each group, for the zero points of asymmetric
// weights. With act-order, element k is x[perm[k]].
#pragma once

#include <cstddef>

#include "cpu/int4_plan.h"
#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

constexpr int int4_tile = 8 * lanes;

// Which of a word's eight elements nibble i holds.
constexpr int int4_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

template <class T>
constexpr bool int4_bf16_dot = has_bf16_dot && __is_same(T, Bf16);

// Are the products those of integers?
#if defined(__AVX2__)
template <class T>
constexpr bool int4_integers = !has_bf16_dot && __is_same(T, Bf16);
#else
template <class T>
constexpr bool int4_integers = false;
#endif

template <class T>
constexpr int64_t int4_tile_bytes =
    int4_integers<T> ? 6 * sizeof(I32) : int4_tile * (int4_bf16_dot<T> ? 2 : 4);

// One prepared x, in memory of int4_x_bytes().
template <class T>
struct Int4X {
    const char* tiles;  // [tile][batch], each as above
    const float* sums;  // [batch][n_groups], or null
    int64_t in_features, n_groups;
};

// The elements [from, from + int4_tile) of a row of x into `tile`, zeros behind the row's end.
template <class T>
inline void int4_gather(const T* x, const int32_t* perm, int64_t from, int64_t in_features, T* tile) {
    const int64_t count = smaller<int64_t>(int4_tile, in_features - from);
    if (perm) {
        for (int64_t i = 0; i < count; ++i) tile[i] = x[perm[from + i]];
    } else if (count == int4_tile) {
        __builtin_memcpy(tile, x + from, int4_tile * sizeof(T));
    } else {
        for (int64_t i = 0; i < count; ++i) tile[i] = x[from + i];
    }
    for (int64_t i = count; i < int4_tile; ++i) tile[i] = T{};
}

// One tile as integers. Infinity and NaN make the whole tile's step NaN.
inline void int4_lay_out_integers(const F32 (&values)[8], char* to) {
    // Magnitudes are ordered as their bits are, infinity and NaN last.
    U32 bits = {};
    for (const F32& value : values) {
        const U32 magnitude = bit_copy<U32>(value) & 0x7fffffff;
        bits = magnitude > bits ? magnitude : bits;
    }
    uint32_t largest = 0;
    for (int i = 0; i < lanes; ++i) largest = larger<uint32_t>(largest, bits[i]);
    const uint32_t exponent = larger<uint32_t>(largest >> 23, 14);
    // All are below 2^(exponent - 126), and so 14 bits of the step.
    const float step = bit_copy<float>(exponent == 255 ? 0x7fc00000 : (exponent - 13) << 23);
    const F32 per_step = broadcast(bit_copy<float>((267 - exponent) << 23));
    int32_t elements[int4_tile], sums[lanes] = {};
    for (int i = 0; i < 8; ++i) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
        const I32 integers = bit_copy<I32>(values[i] * per_step + 0x1.8p23f) - 0x4b400000;
        __builtin_memcpy(elements + i * lanes, &integers, sizeof(integers));
    }
    int8_t slices[4][4 * lanes];
    for (int word = 0; word < lanes; ++word) {
        for (int byte = 0; byte < 4; ++byte) {
            for (int odd = 0; odd < 2; ++odd) {
                const int32_t element = elements[8 * word + int4_order[2 * byte + odd]];
                slices[odd][4 * word + byte] = static_cast<int8_t>(element >> 7);
                slices[2 + odd][4 * word + byte] = static_cast<int8_t>(element & 127);
                sums[word] += 8 * element;
            }
        }
    }
    __builtin_memcpy(to, slices, sizeof(slices));
    __builtin_memcpy(to + sizeof(slices), sums, sizeof(sums));
    store(reinterpret_cast<float*>(to + sizeof(slices) + sizeof(sums)), broadcast(step));
}

// The sum of the elements of words [first, first + count) of such a tile.
inline float int4_integer_sum(const char* tile, int first, int count) {
    int32_t sums[lanes];
    float step;
    __builtin_memcpy(sums, tile + 4 * sizeof(I32), sizeof(sums));
    __builtin_memcpy(&step, tile + 5 * sizeof(I32), sizeof(step));
    int32_t sum = 0;
    for (int word = first; word < first + count; ++word) sum += sums[word];
    return static_cast<float>(sum / 8) * step;
}

template <class T>
inline void int4_lay_out(const T* tile, char* to) {
    if constexpr (int4_integers<T>) {
        F32 values[8];
        for (int i = 0; i < 8; ++i) values[i] = load(tile + i * lanes);
        int4_lay_out_integers(values, to);
    } else if constexpr (int4_bf16_dot<T>) {
        uint32_t pairs[int4_tile / 2], transposed[int4_tile / 2];
        __builtin_memcpy(pairs, tile, sizeof(pairs));
        for (int i = 0; i < 4; ++i) {
            for (int word = 0; word < lanes; ++word) transposed[i * lanes + word] = pairs[4 * word + i];
        }
        __builtin_memcpy(to, transposed, sizeof(transposed));
    } else {
        float values[int4_tile], transposed[int4_tile];
        for (int i = 0; i < int4_tile; i += lanes) store(values + i, load(tile + i));
        for (int nibble = 0; nibble < 8; ++nibble) {
            for (int word = 0; word < lanes; ++word) {
                transposed[nibble * lanes + word] = values[8 * word + int4_order[nibble]];
            }
        }
        __builtin_memcpy(to, transposed, sizeof(transposed));
    }
}

// Lays `batch` rows of x out in `memory` for the weight. `sums`: take the groups' sums too. One copy for the
// kernels of every batch.
template <class T>
[[gnu::noinline]] inline Int4X<T> int4_prepare(const T* x, const Int4WeightParams& weight, int64_t batch,
                                               int64_t in_features, bool sums, void* memory) {
    const int64_t n_groups = weight.n_groups, group_size = in_features / n_groups;
    auto* tiles = static_cast<char*>(memory);
    auto* group_sums =
        reinterpret_cast<float*>(tiles + batch * (int4_padded(in_features) / int4_tile) * int4_tile_bytes<T>);
    for (int64_t b = 0; b < batch; ++b) {
        float* row_sums = group_sums + b * n_groups;
        if (sums) {
            for (int64_t g = 0; g < n_groups; ++g) row_sums[g] = 0;
        }
        for (int64_t from = 0; from < in_features; from += int4_tile) {
            T tile[int4_tile];
            int4_gather(x + b * in_features, weight.perm, from, in_features, tile);
            char* laid_out = tiles + (from / int4_tile * batch + b) * int4_tile_bytes<T>;
            int4_lay_out(tile, laid_out);
            // No group ends inside a block of 32.
            for (int64_t block = 0; sums && block < int4_tile && from + block < in_features; block += 32) {
                float& of_group = row_sums[(from + block) / group_size];
                if constexpr (int4_integers<T>) {  // as they are multiplied
                    of_group += int4_integer_sum(laid_out, static_cast<int>(block / 8), 4);
                } else {
                    F32 sum = {};
                    for (int i = 0; i < 32; i += lanes) sum += load(tile + block + i);
                    of_group += reduce_add(sum);
                }
            }
        }
    }
    return {tiles, sums ? group_sums : nullptr, in_features, n_groups};
}

// prepared[i]: x for weights[i], one in memory for all weights that read it alike.
template <size_t count, class T>
inline void int4_prepare_all(const T* x, const Int4WeightParams* const (&weights)[count], int64_t batch,
                             int64_t in_features, void* memory, Int4X<T> (&prepared)[count]) {
    const auto alike = [&](size_t i, size_t j) {
        return weights[i]->perm == weights[j]->perm && weights[i]->n_groups == weights[j]->n_groups;
    };
    auto* next = static_cast<char*>(memory);
    for (size_t i = 0; i < count; ++i) {
        size_t first = 0;
        while (!alike(first, i)) ++first;
        if (first < i) {
            prepared[i] = prepared[first];
            continue;
        }
        bool sums = false;
        for (size_t j = i; j < count; ++j) sums |= alike(i, j) && weights[j]->zeros != nullptr;
        prepared[i] = int4_prepare(x, *weights[i], batch, in_features, sums, next);
        next += int4_x_bytes(batch, in_features, weights[i]->n_groups);
    }
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
