// Dot products of 4-bit rows with the 1 to 8 rows of x: the inner loop of the int4 GEMVs.
//
//   out = sum over groups of scale * (sum of (q - 8) * x  -  (zero - 8) * sum of x)
//
// q - 8 is exact in bf16 and float32 and comes out of a table: vpermw and vpermps index it by the low bits of
// a lane, so a shift and a look-up turn 64 bytes of weights into four vectors of bf16 pairs, or eight of
// float32. Mask and exponent (128 + q) would take about as long on Zen 4 and leave a bias to be taken off.
// The sums of x over the groups are prepared (int4_x.h); a symmetric weight has zero = 8 and needs none.
//
// bf16 x without bf16 dot products is integers (int4_x.h), which the nibbles multiply as they are: three
// instructions make 64 bytes of weights bytes of nibbles, and four more multiply each of the two slices of x
// and add up, two with AVX512-VNNI, where decoding to float32 takes five for every eighth of them.
//
// Other products and all sums of tiles are float32; the scale multiplies once a group. Bytes: words, scales,
// zeros, each once.
#include "cpu/int4_rows.h"

#include "cpu/dot.h"
#include "cpu/vnni.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

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

// Can the CPU that runs this code multiply and add bytes in one instruction, vpdpbusd?
#if defined(__AVX512BW__) && !defined(__AVX512BF16__)
constexpr bool int4_may_have_vnni = true;

// sums + the four products of every word's unsigned bytes and x's signed ones. Assembly: the intrinsic is for
// files compiled for AVX512-VNNI, which would be one more copy of all kernels.
inline I32 int4_add_products(I32 sums, U32 bytes, const char* x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(_mm512_loadu_si512(x)));
    return sums;
}
#else
constexpr bool int4_may_have_vnni = false;

inline I32 int4_add_products(I32 sums, U32, const char*) {
    return sums;
}
#endif

#if defined(__AVX2__)
// Of every word: the sum over its eight nibbles of q times the elements of one slice of x. even, odd: those
// nibbles as bytes; weight: int16 that multiplies the sum, 128 or 1. A sum of int16 is at most 4 * 15 * 128.
inline I32 int4_slice_dot(U32 even, U32 odd, const char* slice, int16_t weight) {
#if defined(__AVX512BW__)
    const auto x = [&](int i) { return _mm512_loadu_si512(slice + i * sizeof(U32)); };
    const __m512i sums = _mm512_add_epi16(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(even), x(0)),
                                          _mm512_maddubs_epi16(reinterpret_cast<__m512i>(odd), x(1)));
    return reinterpret_cast<I32>(_mm512_madd_epi16(sums, _mm512_set1_epi16(weight)));
#else
    const auto x = [&](int i) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(slice + i * sizeof(U32)));
    };
    const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(even), x(0)),
                                          _mm256_maddubs_epi16(reinterpret_cast<__m256i>(odd), x(1)));
    return reinterpret_cast<I32>(_mm256_madd_epi16(sums, _mm256_set1_epi16(weight)));
#endif
}

// int4_tile_dot() of x as integers.
template <bool vnni, int rows, int batch>
inline void int4_tile_dot_integers(const U32 (&words)[rows], const char* x, F32 (&part)[rows][batch]) {
    constexpr int64_t tile_bytes = 6 * sizeof(I32);
    U32 even[rows], odd[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
        even[r] = words[r] & 0x0f0f0f0f;
        odd[r] = words[r] >> 4 & 0x0f0f0f0f;
    }
#pragma GCC unroll 8
    for (int b = 0; b < batch; ++b) {
        const char* of_row = x + b * tile_bytes;
        I32 eight_sums;
        __builtin_memcpy(&eight_sums, of_row + 4 * sizeof(I32), sizeof(eight_sums));
        const F32 step = load(reinterpret_cast<const float*>(of_row + 5 * sizeof(I32)));
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            I32 sum;
            if constexpr (vnni) {
                I32 high = int4_add_products(I32{}, even[r], of_row), low = -eight_sums;
                high = int4_add_products(high, odd[r], of_row + sizeof(I32));
                low = int4_add_products(low, even[r], of_row + 2 * sizeof(I32));
                low = int4_add_products(low, odd[r], of_row + 3 * sizeof(I32));
                sum = (high << 7) + low;
            } else {
                sum = int4_slice_dot(even[r], odd[r], of_row, 128) +
                      int4_slice_dot(even[r], odd[r], of_row + 2 * sizeof(I32), 1) - eight_sums;
            }
            part[r][b] = __builtin_convertvector(sum, F32) * step;
        }
    }
}
#endif

// One tile of `rows` rows: part[r][b][lane] = sum of (q - 8) * x over the eight elements of the lane's word
// in row r.
template <bool vnni, int rows, int batch, class T>
inline void int4_tile_dot(const U32 (&words)[rows], const char* x, F32 (&part)[rows][batch]) {
    constexpr int64_t tile_bytes = int4_tile_bytes<T>;
#if defined(__AVX2__)
    if constexpr (int4_integers<T>) return int4_tile_dot_integers<vnni>(words, x, part);
#endif
    for (auto& row : part) {
        for (F32& sum : row) sum = F32{};
    }
#if defined(__AVX512BF16__)
    if constexpr (int4_bf16_dot<T>) {
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
            __m512bh weights[rows];
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) weights[r] = int4_decode_pair(words[r], pair);
#pragma GCC unroll 8
            for (int b = 0; b < batch; ++b) {
                const auto xv =
                    reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + b * tile_bytes + pair * 64));
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) part[r][b] = _mm512_dpbf16_ps(part[r][b], weights[r], xv);
            }
        }
        return;
    }
#endif
#pragma GCC unroll 8
    for (int nibble = 0; nibble < 8; ++nibble) {
        F32 weights[rows];
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) weights[r] = int4_decode(words[r], nibble);
#pragma GCC unroll 8
        for (int b = 0; b < batch; ++b) {
            const F32 xv = load(reinterpret_cast<const float*>(x + b * tile_bytes) + nibble * lanes);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) part[r][b] = weights[r] * xv + part[r][b];
        }
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

// The rows of one weight, `at_once` of them a pass over x. vnni: on a CPU that has it.
template <int batch, class T, bool vnni = false>
class RowPasses {
  public:
    static constexpr int at_once = Int4Rows<batch, T>::at_once;

    explicit RowPasses(const Int4Rows<batch, T>& rows)
        : weight_(rows.weight), x_(rows.x), group_size_(x_.in_features / x_.n_groups) {}

    // sums[i][b] = dot(row n + i * stride, x[b]) for i in [0, count), count at most at_once
    void dot(int64_t n, int64_t stride, int64_t count, float (*sums)[batch]) const {
        Pass pass;
        for (int r = 0; r < at_once; ++r) {
            // Where rows run out the last one is taken again, and its sum dropped.
            const int64_t row = n + smaller<int64_t>(r, count - 1) * stride;
            pass.packed[r] = weight_.packed + row * (x_.in_features / 2);
            pass.scales[r] = static_cast<const T*>(weight_.scales) + row * x_.n_groups;
        }
        if (group_size_ % int4_tile == 0 || x_.n_groups == 1) {
            whole_tiles(pass);
        } else if (group_size_ * 2 == int4_tile) {
            shared_tiles<2>(pass);
        } else {
            shared_tiles<int4_tile / 32>(pass);
        }
        for (int r = 0; r < smaller<int64_t>(at_once, count); ++r) {
            for (int b = 0; b < batch; ++b) sums[r][b] = reduce_add(pass.acc[r][b]);
            if (weight_.zeros) {
                subtract_zeros(weight_.zeros + (n + r * stride) * x_.n_groups, pass.scales[r], sums[r]);
            }
        }
    }

  private:
    struct Pass {
        const uint8_t* packed[at_once];
        const T* scales[at_once];
        F32 acc[at_once][batch] = {};
    };

    // part = the tile at element `from`. A row's last tile may be short: its nibbles past the end meet zeros
    // of x.
    void tile(const Pass& pass, int64_t from, F32 (&part)[at_once][batch]) const {
        U32 words[at_once] = {};
        const char* x = x_.tiles + from / int4_tile * batch * int4_tile_bytes<T>;
        if (from + int4_tile <= x_.in_features) {
            for (int r = 0; r < at_once; ++r) {
                prefetch_once(pass.packed[r] + from / 2 + prefetch_bytes);
                __builtin_memcpy(&words[r], pass.packed[r] + from / 2, sizeof(U32));
            }
        } else {
            for (int r = 0; r < at_once; ++r) {
                for (int64_t i = 0; i < (x_.in_features - from) / 8; ++i) {
                    uint32_t word;
                    __builtin_memcpy(&word, pass.packed[r] + from / 2 + i * 4, sizeof(word));
                    words[r][i] = word;
                }
            }
        }
        int4_tile_dot<vnni, at_once, batch, T>(words, x, part);
    }

    // A group is a number of tiles, or the whole row; each tile is scaled and added on its own.
    void whole_tiles(Pass& pass) const {
        for (int64_t group = 0; group < x_.n_groups; ++group) {
            const int64_t end = (group + 1) * group_size_;
            for (int64_t from = group * group_size_; from < end; from += int4_tile) {
                F32 part[at_once][batch];
                tile(pass, from, part);
                for (int r = 0; r < at_once; ++r) add_scaled<1>(part[r], pass.scales[r] + group, pass.acc[r]);
            }
        }
    }

    // A tile is `groups` groups.
    template <int groups>
    void shared_tiles(Pass& pass) const {
        for (int64_t from = 0, group = 0; from < x_.in_features; from += int4_tile, group += groups) {
            F32 part[at_once][batch];
            tile(pass, from, part);
            if (group + groups <= x_.n_groups) {
                for (int r = 0; r < at_once; ++r)
                    add_scaled<groups>(part[r], pass.scales[r] + group, pass.acc[r]);
                continue;
            }
            for (int r = 0; r < at_once; ++r) {
                T scales[groups] = {};
                for (int64_t i = 0; group + i < x_.n_groups; ++i) scales[i] = pass.scales[r][group + i];
                add_scaled<groups>(part[r], scales, pass.acc[r]);
            }
        }
    }

    template <int groups>
    static void add_scaled(const F32 (&part)[batch], const T* scales, F32 (&acc)[batch]) {
        const F32 scale = int4_scales<groups>(scales);
        for (int b = 0; b < batch; ++b) acc[b] += part[b] * scale;
    }

    void subtract_zeros(const uint8_t* zeros, const T* scales, float* sums) const {
        const int64_t n_groups = x_.n_groups;
        F32 acc[batch] = {};
        const auto add = [&](int64_t g, I32 wanted) {
            Bytes bytes;
            __builtin_memcpy(&bytes, zeros + g, sizeof(bytes));
            F32 shift = (__builtin_convertvector(bytes, F32) - 8.0f) * load(scales + g);
            shift = wanted ? shift : F32{};
            for (int b = 0; b < batch; ++b) acc[b] += shift * load(x_.sums + b * n_groups + g);
        };
        int64_t g = 0;
        for (; g + lanes <= n_groups; g += lanes) add(g, I32{} == 0);
        if (g < n_groups && n_groups >= lanes) {  // the last vector overlaps the one before
            I32 lane;
            for (int i = 0; i < lanes; ++i) lane[i] = i;
            add(n_groups - lanes, lane >= static_cast<int>(g - (n_groups - lanes)));
            g = n_groups;
        }
        for (int b = 0; b < batch; ++b) sums[b] -= reduce_add(acc[b]);
        for (; g < n_groups; ++g) {
            const float shift = (static_cast<float>(zeros[g]) - 8.0f) * to_float(scales[g]);
            for (int b = 0; b < batch; ++b) sums[b] -= shift * x_.sums[b * n_groups + g];
        }
    }

    const Int4WeightParams& weight_;
    const Int4X<T>& x_;
    int64_t group_size_;
};

}  // namespace

template <int batch, class T>
void Int4Rows<batch, T>::dot(int64_t n, int64_t stride, int64_t count, float (*sums)[batch]) const {
    if constexpr (int4_integers<T> && int4_may_have_vnni) {
        if (uses_vnni()) return RowPasses<batch, T, true>(*this).dot(n, stride, count, sums);
    }
    RowPasses<batch, T>(*this).dot(n, stride, count, sums);
}

#define PYKERNELS_INT4_ROWS(batch)          \
    template struct Int4Rows<batch, float>; \
    template struct Int4Rows<batch, Bf16>;  \
    template struct Int4Rows<batch, Fp16>;
PYKERNELS_INT4_ROWS(1)
PYKERNELS_INT4_ROWS(2)
PYKERNELS_INT4_ROWS(3)
PYKERNELS_INT4_ROWS(4)
PYKERNELS_INT4_ROWS(5)
PYKERNELS_INT4_ROWS(6)
PYKERNELS_INT4_ROWS(7)
PYKERNELS_INT4_ROWS(8)
#undef PYKERNELS_INT4_ROWS

}  // namespace pykernels::cpu::PYKERNELS_ISA
