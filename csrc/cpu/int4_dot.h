// Dot products of one 4-bit row with the 1 to 8 rows of x: the inner loop of the int4 mat-vecs.
//
//   out = sum over groups of scale * (sum of (q - 8) * x  -  (zero - 8) * sum of x)
//
// q - 8 is exact in bf16 and float32 and comes out of a table: vpermw and vpermps index it by the low bits of
// a lane, so a shift and a look-up turn 64 bytes of weights into four vectors of bf16 pairs, or eight of
// float32, without a mask, a conversion or a subtraction. The sums of x are prepared (int4_x.h); a symmetric
// weight has zero = 8 and no second term.
//
// Products and sums are float32; the scale multiplies once a group. Bytes: words, scales, zeros, each once.
#pragma once

#include "cpu/dot.h"
#include "cpu/int4_x.h"

namespace pykernels::cpu::PYKERNELS_ISA {

typedef float Float4 __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(lanes)));

// q - 8 of nibble `nibble` of every word.
inline F32 int4_decode(U32 words, int nibble) {
#if defined(__AVX512F__)
    const F32 table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(words >> 4 * nibble), table);
#else
    return __builtin_convertvector(bit_copy<I32>(words >> 4 * nibble & 15) - 8, F32);
#endif
}

#if defined(__AVX512BF16__)
// The same as bf16, of nibbles `pair` and `pair` + 4: elements 2 * pair and 2 * pair + 1 of every word.
inline __m512bh int4_decode_pair(U32 words, int pair) {
    typedef uint16_t Halves __attribute__((vector_size(64)));
    // -8 to 7, twice: the index is five bits of a lane, and its fifth is the next nibble's.
    const Halves table = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                          0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                          0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                          0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(words >> 4 * pair),
                                                               reinterpret_cast<__m512i>(table)));
}
#endif

// Adds one tile's products: acc[b][lane] += (q - 8) * x over the eight elements of the lane's word. `x` is
// the tile in the first row of the prepared x, whose rows are `padded` apart.
template <int batch, class T>
inline void int4_tile_dot(U32 words, const void* x_, int64_t padded, F32* acc) {
#if defined(__AVX512BF16__)
    if constexpr (int4_bf16_dot<T>) {
        const auto* x = static_cast<const Bf16*>(x_);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
            const __m512bh weights = int4_decode_pair(words, pair);
#pragma GCC unroll 8
            for (int b = 0; b < batch; ++b) {
                const auto xv =
                    reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + b * padded + pair * 2 * lanes));
                acc[b] = _mm512_dpbf16_ps(acc[b], weights, xv);
            }
        }
        return;
    }
#endif
    const auto* x = static_cast<const float*>(x_);
#pragma GCC unroll 8
    for (int nibble = 0; nibble < 8; ++nibble) {
        const F32 weights = int4_decode(words, nibble);
#pragma GCC unroll 8
        for (int b = 0; b < batch; ++b) acc[b] = weights * load(x + b * padded + nibble * lanes) + acc[b];
    }
}

// Lane by lane, the scale of the group that the lane's word belongs to, where `groups` of them share a tile.
template <int groups, class T>
inline F32 int4_scales(const T* scales) {
    if constexpr (groups == 1) {
        return broadcast(to_float(scales[0]));
    } else if constexpr (groups == 2) {
        I32 upper = {};
        for (int i = lanes / 2; i < lanes; ++i) upper[i] = -1;
        return upper ? broadcast(to_float(scales[1])) : broadcast(to_float(scales[0]));
    } else {
        static_assert(groups == 4 && lanes == 16);
#if defined(__AVX512F__)
        const Float4 four = {to_float(scales[0]), to_float(scales[1]), to_float(scales[2]),
                             to_float(scales[3])};
        const __m512i word_group = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        return _mm512_permutexvar_ps(word_group, _mm512_castps128_ps512(four));
#endif
    }
}

// The rows of one weight, against one prepared x.
template <int batch, class T>
class Int4Rows {
  public:
    Int4Rows(const Int4WeightParams& weight, const Int4X<T>& x)
        : weight_(weight), x_(x), group_size_(x.in_features / x.n_groups) {}

    // sums[b] = dot(row n, x[b])
    void dot(int64_t n, float* sums) const {
        const uint8_t* packed = weight_.packed + n * (x_.in_features / 2);
        const T* scales = static_cast<const T*>(weight_.scales) + n * x_.n_groups;
        F32 acc[batch] = {};
        if (group_size_ % int4_tile == 0 || x_.n_groups == 1) {
            whole_tiles(packed, scales, acc);
        } else if (group_size_ * 2 == int4_tile) {
            shared_tiles<2>(packed, scales, acc);
        } else {
            shared_tiles<int4_tile / 32>(packed, scales, acc);
        }
        for (int b = 0; b < batch; ++b) sums[b] = reduce_add(acc[b]);
        if (weight_.zeros) subtract_zeros(weight_.zeros + n * x_.n_groups, scales, sums);
    }

  private:
    static constexpr int64_t tile_bytes = int4_tile / 2;

    const void* x_tile(int64_t from) const {
        return static_cast<const char*>(x_.values) + from * (int4_bf16_dot<T> ? 2 : 4);
    }

    static U32 words(const uint8_t* packed) {
        prefetch_once(packed + prefetch_bytes);
        U32 result;
        __builtin_memcpy(&result, packed, sizeof(result));
        return result;
    }

    // The words of a row's last tile, which is short. Nibbles past the end meet zeros of x.
    U32 last_words(const uint8_t* packed, int64_t from) const {
        U32 result = {};
        __builtin_memcpy(&result, packed + from / 2, static_cast<size_t>(x_.in_features - from) / 2);
        return result;
    }

    // A group is a number of tiles, or the whole row. It is summed in stretches of 128 elements, each scaled
    // and added on its own: a sum in steps errs less than one long one.
    void whole_tiles(const uint8_t* packed, const T* scales, F32* acc) const {
        for (int64_t group = 0; group < x_.n_groups; ++group) {
            const F32 scale = int4_scales<1>(scales + group);
            const int64_t group_end = (group + 1) * group_size_;
            for (int64_t from = group * group_size_; from < group_end;) {
                const int64_t end = smaller(group_end, from + int4_longest_tile);
                F32 part[batch] = {};
                for (; from + int4_tile <= end; from += int4_tile) {
                    int4_tile_dot<batch, T>(words(packed + from / 2), x_tile(from), x_.padded, part);
                }
                if (from < end) {
                    int4_tile_dot<batch, T>(last_words(packed, from), x_tile(from), x_.padded, part);
                    from = end;
                }
                for (int b = 0; b < batch; ++b) acc[b] += part[b] * scale;
            }
        }
    }

    // A tile is `groups` groups.
    template <int groups>
    void shared_tiles(const uint8_t* packed, const T* scales, F32* acc) const {
        int64_t from = 0;
        for (; from + int4_tile <= x_.in_features; from += int4_tile, scales += groups) {
            F32 part[batch] = {};
            int4_tile_dot<batch, T>(words(packed + from / 2), x_tile(from), x_.padded, part);
            const F32 scale = int4_scales<groups>(scales);
            for (int b = 0; b < batch; ++b) acc[b] += part[b] * scale;
        }
        if (from < x_.in_features) {
            F32 part[batch] = {};
            int4_tile_dot<batch, T>(last_words(packed, from), x_tile(from), x_.padded, part);
            T last_scales[groups] = {};
            for (int64_t i = 0; i < (x_.in_features - from) / group_size_; ++i) last_scales[i] = scales[i];
            const F32 scale = int4_scales<groups>(last_scales);
            for (int b = 0; b < batch; ++b) acc[b] += part[b] * scale;
        }
    }

    void subtract_zeros(const uint8_t* zeros, const T* scales, float* sums) const {
        const int64_t n_groups = x_.n_groups;
        F32 acc[batch] = {};
        int64_t g = 0;
        for (; g + lanes <= n_groups; g += lanes) {
            Bytes bytes;
            __builtin_memcpy(&bytes, zeros + g, sizeof(bytes));
            const F32 shift = (__builtin_convertvector(bytes, F32) - 8.0f) * load(scales + g);
            for (int b = 0; b < batch; ++b) acc[b] += shift * load(x_.sums + b * n_groups + g);
        }
        for (int b = 0; b < batch; ++b) sums[b] -= reduce_add(acc[b]);
        for (; g < n_groups; ++g) {
            const float shift = (static_cast<float>(zeros[g]) - 8.0f) * to_float(scales[g]);
            for (int b = 0; b < batch; ++b) sums[b] -= shift * x_.sums[b * n_groups + g];
        }
    }

    const Int4WeightParams& weight_;
    const Int4X<T> x_;
    int64_t group_size_;
};

}  // namespace pykernels::cpu::PYKERNELS_ISA
