// A warp's work on tiles of 16 keys in gqa_decode: loads of K and V, scores, softmax, the product with V.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/gqa_decode_plan.h"
#include "unified_softmax.h"

namespace pykernels::cuda::gqa {

// Finite, so that the factor exp2(lowest - maximum) of an empty partial is 0 and not NaN.
constexpr float lowest = -1e30f;

// g = lane / 4 and t = lane % 4 of the MMA layouts (common/ptx_math.cuh).
__device__ __forceinline__ int lane_group() {
    return static_cast<int>(threadIdx.x) % warp_size / 4;
}
__device__ __forceinline__ int lane_in_group() {
    return static_cast<int>(threadIdx.x) % 4;
}

// The dimensions that a block takes, where the kernel is compiled for its head_dim: all of them.
template <int dims>
struct ExactDims {
    static constexpr bool exact = true, one_head = false;
    static constexpr int key_max = dims, value_max = dims;
    static constexpr int head_dim = dims, first_value = 0, n_values = dims;

    __device__ __forceinline__ ExactDims(const GqaDecodeParams&, const GqaPlan&, int) {}

    __device__ __forceinline__ int cell(const GqaPlan&, int group) const { return group; }

    __device__ __forceinline__ void cap(float (&)[4]) const {}  // gqa_softcap.cuh has one
};

// A lane's part of 16 keys: of K rows g and g + 8, eight dimensions of every 32; of V rows value_row(0..3),
// eight dimensions of every 64.
template <int head_dim>
struct Keys {
    uint4 rows[2][head_dim / 32];
};
template <int head_dim>
struct Values {
    uint4 rows[4][head_dim / 64];
};

constexpr __device__ int value_row(int i, int t) {
    return 2 * t + i % 2 + i / 2 * 8;
}

// `again`: the tile with the newest key is read a second time, after the producer has written it. That load
// bypasses the L1, which may hold stale lines of the first one.
enum class Reading { first, again };

template <Reading reading>
__device__ __forceinline__ uint4 load_cached(const void* slot) {
    const auto* vector = static_cast<const uint4*>(slot);
    return reading == Reading::first ? load_streamed(vector) : load_fresh(vector);
}

// For slots past max_len - 1 the last slot is loaded instead; it is masked in the sums.
template <Reading reading, class T, int head_dim>
__device__ __forceinline__ void load_keys(Keys<head_dim>& keys, const T* k_cache, int first_key,
                                          int max_len) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t row =
            static_cast<uint32_t>(min(first_key + lane_group() + 8 * half, max_len - 1)) * head_dim;
#pragma unroll
        for (int i = 0; i < head_dim / 32; ++i)
            keys.rows[half][i] = load_cached<reading>(k_cache + row + i * 32 + lane_in_group() * 8);
    }
}

template <Reading reading, class T, int head_dim>
__device__ __forceinline__ void load_values(Values<head_dim>& values, const T* v_cache, int first_key,
                                            int max_len) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t row =
            static_cast<uint32_t>(min(first_key + value_row(i, lane_in_group()), max_len - 1)) * head_dim;
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j)
            values.rows[i][j] = load_cached<reading>(v_cache + row + j * 64 + lane_group() * 8);
    }
}

template <class T>
constexpr Dtype dtype_of = Dtype::bfloat16;
template <>
constexpr Dtype dtype_of<Fp16> = Dtype::float16;

// How exponentials are kept in range: less the maximum so far, or less phi (unified_softmax.h).
struct OnlineSoftmax {
    static constexpr Softmax kind = Softmax::online;
    static constexpr bool unified = false;
};
struct UnifiedSoftmax {
    static constexpr Softmax kind = Softmax::unified;
    static constexpr bool unified = true;
};

// The running softmax of a warp. A lane holds heads 2t and 2t + 1: the sum of exponentials over the lane's
// keys, and the output. out[j][p] is {head 2t, head 2t + 1} of dimension 64j + 8g + 2p, then of the next
// dimension. exponentials() makes weights of V from scores.
template <int head_dim, class Softmax>
struct Partial {
    float maximum[2] = {lowest, lowest};  // the same in all lanes of a head
    float sum[2] = {};
    float out[head_dim / 64][4][4] = {};

    template <class T, int tiles>
    __device__ __forceinline__ void exponentials(float (&scores)[tiles][4]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float maximum = fmaxf(scores[0][h], scores[0][2 + h]);
            if (tiles == 2) maximum = fmaxf(maximum, fmaxf(scores[tiles - 1][h], scores[tiles - 1][2 + h]));
#pragma unroll
            for (int mask = 4; mask < warp_size; mask *= 2)
                maximum = fmaxf(maximum, shuffle_xor(maximum, mask));
            maximum = fmaxf(maximum, this->maximum[h]);
            const float factor = exp2_approximate(this->maximum[h] - maximum);
            this->maximum[h] = maximum;
            sum[h] *= factor;
#pragma unroll
            for (int tile = 0; tile < tiles; ++tile) {
                scores[tile][h] = exp2_approximate(scores[tile][h] - maximum);
                scores[tile][2 + h] = exp2_approximate(scores[tile][2 + h] - maximum);
                sum[h] += scores[tile][h] + scores[tile][2 + h];
            }
#pragma unroll
            for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
                for (int p = 0; p < 4; ++p) {
                    out[j][p][h] *= factor;
                    out[j][p][2 + h] *= factor;
                }
            }
        }
    }
};

// Nothing passes between lanes or tiles. An exponent past the highest makes the sum infinite.
template <int head_dim>
struct Partial<head_dim, UnifiedSoftmax> {
    float phi;              // in base 2
    float maximum[2] = {};  // not used
    float sum[2] = {};
    float out[head_dim / 64][4][4] = {};

    template <class T, int tiles>
    __device__ __forceinline__ void exponentials(float (&scores)[tiles][4]) {
        constexpr float highest = unified_highest_exponent(dtype_of<T>);
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float exponent = scores[tile][i] - phi;
                scores[tile][i] = exponent <= highest ? exp2_approximate(exponent) : INFINITY;
                sum[i % 2] += scores[tile][i];
            }
        }
    }
};

// Scores of 16 keys in base 2: {head 2t, head 2t + 1} of key g, then of key g + 8.
template <class T, int head_dim>
__device__ __forceinline__ void score(float (&scores)[4], const Keys<head_dim>& keys, const T* q,
                                      int valid_keys, float scale) {
    float halves[2][4] = {};  // two independent accumulators hide the latency of MMA
#pragma unroll
    for (int i = 0; i < head_dim / 32; ++i) {
        const uint4 q_vector = load(reinterpret_cast<const uint4*>(q + i * 32));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t a[4] = {word(keys.rows[0][i], 2 * half), word(keys.rows[1][i], 2 * half),
                                   word(keys.rows[0][i], 2 * half + 1), word(keys.rows[1][i], 2 * half + 1)};
            const uint32_t b[2] = {word(q_vector, 2 * half), word(q_vector, 2 * half + 1)};
            matrix_multiply_add<T>(halves[half], a, b);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        scores[i] = lane_group() + i / 2 * 8 < valid_keys ? (halves[0][i] + halves[1][i]) * scale : lowest;
}

// Softmax and the product with V for `tiles` tiles, the first of which has a valid key.
template <class T, int head_dim, int tiles, class Softmax>
__device__ __forceinline__ void attend(float (&scores)[tiles][4], Values<head_dim>* values,
                                       const int (&valid_keys)[tiles], Partial<head_dim, Softmax>& partial) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        if (valid_keys[tile] >= gqa_tile_keys) continue;  // else masked V is zeroed: 0 * NaN would be NaN

#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (value_row(i, lane_in_group()) < valid_keys[tile]) continue;
#pragma unroll
            for (int j = 0; j < head_dim / 64; ++j) values[tile].rows[i][j] = make_uint4(0, 0, 0, 0);
        }
    }
    partial.template exponentials<T>(scores);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t weights[2] = {transpose_8x8(pack<T>(scores[tile][0], scores[tile][1])),
                                     transpose_8x8(pack<T>(scores[tile][2], scores[tile][3]))};
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                const uint32_t v[4] = {word(values[tile].rows[0][j], p), word(values[tile].rows[1][j], p),
                                       word(values[tile].rows[2][j], p), word(values[tile].rows[3][j], p)};
                const uint32_t a[4] = {low_halves(v[0], v[1]), high_halves(v[0], v[1]),
                                       low_halves(v[2], v[3]), high_halves(v[2], v[3])};
                matrix_multiply_add<T>(partial.out[j][p], a, weights);
            }
        }
    }
}

}  // namespace pykernels::cuda::gqa
