// gqa_decode: out = softmax(scale * q K^T) V over the first kv_len slots, one query token a sequence.
//
// A block takes one KV head, up to eight of its query heads (K and V are read once for all of them) and one
// split of the KV axis; its warps deal its tiles of 16 keys out among themselves (gqa_decode_plan.h). Both
// products run on the matrix unit, turned so that the eight heads are its narrow side:
//   S   = K Q^T   16 keys x 8 heads,     summed over head_dim
//   O^T = V^T P^T head_dim x 8 heads,    summed over the 16 keys
// K and V go from memory to registers in 16-byte loads; the next tile's K is asked for as soon as S is done
// with this one's, the next V after O^T. Which dimension or key an index of the product means is free as long
// as both factors agree, so lanes take what lies together in memory: of K eight dimensions of a row, of V
// eight dimensions of four rows. Softmax is online, in base 2; warps, then splits are joined by their
// log-sum-exp (Flash-Decoding), the splits by the block that arrives last.
//
// Least bytes: K and V of kv_len slots, once. What limits it: latency up to some thousand keys, memory
// beyond.
//
// Before wait_for_producers() it reads kv_len and its warps' first tiles; the one with the newest key is read
// again after it. Older slots and kv_len must not be written by the launch right before a programmatic one.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/gqa_decode_plan.h"

namespace pykernels::cuda {
namespace {

// Finite, so that an empty share's factor exp2(lowest - maximum) is 0 and not NaN.
constexpr float lowest = -1e30f;

// A lane's place in the matrix unit's layouts (common/ptx.cuh).
__device__ __forceinline__ int lane_group() {
    return static_cast<int>(threadIdx.x) % warp_size / 4;
}
__device__ __forceinline__ int lane_in_group() {
    return static_cast<int>(threadIdx.x) % 4;
}

// A lane's share of 16 keys: of K rows group and group + 8, eight dimensions of every 32; of V rows
// value_row(0..3), eight dimensions of every 64.
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

// Slots from max_len on do not exist: the last one is read in their place, and is left out of the sums.
template <class T, int head_dim>
__device__ __forceinline__ void load_keys(Keys<head_dim>& keys, const T* k_cache, int first_key,
                                          int max_len) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const T* row = k_cache + int64_t{min(first_key + lane_group() + 8 * half, max_len - 1)} * head_dim;
#pragma unroll
        for (int i = 0; i < head_dim / 32; ++i)
            keys.rows[half][i] =
                load_fresh(reinterpret_cast<const uint4*>(row + i * 32 + lane_in_group() * 8));
    }
}

template <class T, int head_dim>
__device__ __forceinline__ void load_values(Values<head_dim>& values, const T* v_cache, int first_key,
                                            int max_len) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const T* row =
            v_cache + int64_t{min(first_key + value_row(i, lane_in_group()), max_len - 1)} * head_dim;
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j)
            values.rows[i][j] = load_fresh(reinterpret_cast<const uint4*>(row + j * 64 + lane_group() * 8));
    }
}

__device__ __forceinline__ uint32_t word(const uint4& vector, int i) {
    return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}

// What a warp knows so far. A lane holds heads 2t and 2t + 1: their maximum (all lanes of a head agree), the
// sum over its own keys, and of the output dimensions 64j + 8g + 2p and the one after it at out[j][p]: {of
// head 2t, of head 2t + 1} of the first, then of the second.
template <int head_dim>
struct Partial {
    float maximum[2] = {lowest, lowest};
    float sum[2] = {};
    float out[head_dim / 64][4][4] = {};
};

// Scores of 16 keys in base 2: {head 2t, head 2t + 1} of key g, then of key g + 8.
template <class T, int head_dim>
__device__ __forceinline__ void score(float (&scores)[4], const Keys<head_dim>& keys,
                                      const uint4 (&q)[head_dim / 32], int valid_keys, float scale) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] = 0;
#pragma unroll
    for (int i = 0; i < head_dim / 32; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t a[4] = {word(keys.rows[0][i], 2 * half), word(keys.rows[1][i], 2 * half),
                                   word(keys.rows[0][i], 2 * half + 1), word(keys.rows[1][i], 2 * half + 1)};
            const uint32_t b[2] = {word(q[i], 2 * half), word(q[i], 2 * half + 1)};
            matrix_multiply_add<T>(scores, a, b);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        scores[i] = lane_group() + i / 2 * 8 < valid_keys ? scores[i] * scale : lowest;
}

template <class T, int head_dim>
__device__ __forceinline__ void attend(float (&scores)[4], Values<head_dim>& values, int valid_keys,
                                       Partial<head_dim>& partial) {
    if (valid_keys < gqa_tile_keys) {  // a weight of 0 does not silence a NaN
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (value_row(i, lane_in_group()) < valid_keys) continue;
#pragma unroll
            for (int j = 0; j < head_dim / 64; ++j) values.rows[i][j] = make_uint4(0, 0, 0, 0);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float maximum = fmaxf(scores[h], scores[2 + h]);
#pragma unroll
        for (int mask = 4; mask < warp_size; mask *= 2) maximum = fmaxf(maximum, shuffle_xor(maximum, mask));
        maximum = fmaxf(maximum, partial.maximum[h]);
        const float factor = exp2_approximate(partial.maximum[h] - maximum);
        partial.maximum[h] = maximum;
        scores[h] = exp2_approximate(scores[h] - maximum);
        scores[2 + h] = exp2_approximate(scores[2 + h] - maximum);
        partial.sum[h] = partial.sum[h] * factor + scores[h] + scores[2 + h];
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                partial.out[j][p][h] *= factor;
                partial.out[j][p][2 + h] *= factor;
            }
        }
    }
    const uint32_t weights[2] = {transpose_8x8(pack<T>(scores[0], scores[1])),
                                 transpose_8x8(pack<T>(scores[2], scores[3]))};
#pragma unroll
    for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const uint32_t v[4] = {word(values.rows[0][j], p), word(values.rows[1][j], p),
                                   word(values.rows[2][j], p), word(values.rows[3][j], p)};
            const uint32_t a[4] = {low_halves(v[0], v[1]), high_halves(v[0], v[1]), low_halves(v[2], v[3]),
                                   high_halves(v[2], v[3])};
            matrix_multiply_add<T>(partial.out[j][p], a, weights);
        }
    }
}

// Shares of one head, joined: four of its dimensions, the maximum and the sum of exponentials.
struct Joined {
    float maximum = lowest, sum = 0;
    float out[4] = {};

    __device__ __forceinline__ void add(float other_maximum, float other_sum, const float4& other) {
        const float common = fmaxf(maximum, other_maximum);
        const float mine = exp2_approximate(maximum - common),
                    theirs = exp2_approximate(other_maximum - common);
        maximum = common;
        sum = sum * mine + other_sum * theirs;
        out[0] = out[0] * mine + other.x * theirs;
        out[1] = out[1] * mine + other.y * theirs;
        out[2] = out[2] * mine + other.z * theirs;
        out[3] = out[3] * mine + other.w * theirs;
    }

    template <class T>
    __device__ __forceinline__ void finish(T* to) const {
        const float scale = 1.0f / sum;
        store(reinterpret_cast<uint2*>(to),
              make_uint2(pack<T>(out[0] * scale, out[1] * scale), pack<T>(out[2] * scale, out[3] * scale)));
    }
};

template <class T, int head_dim>
__global__ void __launch_bounds__(gqa_threads, 1)
    gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params, const __grid_constant__ GqaPlan plan) {
    constexpr int row = gqa_row_floats(head_dim);
    const int warp = static_cast<int>(threadIdx.x) / warp_size, g = lane_group(), t = lane_in_group();
    const int unit = static_cast<int>(blockIdx.x) / plan.splits,
              split = static_cast<int>(blockIdx.x) % plan.splits;
    const int head_tile = unit % plan.head_tiles, kv_head = unit / plan.head_tiles % params.n_kv_heads;
    const int b = unit / plan.head_tiles / params.n_kv_heads;
    const int group_size = params.n_heads / params.n_kv_heads;
    const int first_head = kv_head * group_size + head_tile * plan.heads;
    const int n_heads = min(plan.heads, group_size - head_tile * plan.heads);
    const int64_t slots = int64_t{b * params.n_kv_heads + kv_head} * params.max_len * head_dim;
    const T* k_cache = static_cast<const T*>(params.k_cache) + slots;
    const T* v_cache = static_cast<const T*>(params.v_cache) + slots;

    const int step = plan.splits * gqa_warps * gqa_tile_keys;
    int key = (warp * plan.splits + split) * gqa_tile_keys;
    Keys<head_dim> keys;
    Values<head_dim> values;
    if (key < params.max_len) {
        load_keys(keys, k_cache, key, params.max_len);
        load_values(values, v_cache, key, params.max_len);
    }
    const int kv_len = load(params.kv_len + b);
    launch_dependents();
    wait_for_producers();
    // The newest key may have come only now.
    if (plan.programmatic && key < kv_len && key + gqa_tile_keys >= kv_len) {
        load_keys(keys, k_cache, key, params.max_len);
        load_values(values, v_cache, key, params.max_len);
    }

    uint4 q[head_dim / 32] = {};  // of head g, the dimensions of a row of K's lane; 0 past the last head
    if (g < n_heads) {
        const T* q_row =
            static_cast<const T*>(params.q) + int64_t{b * params.n_heads + first_head + g} * head_dim;
#pragma unroll
        for (int i = 0; i < head_dim / 32; ++i)
            q[i] = load(reinterpret_cast<const uint4*>(q_row + i * 32 + t * 8));
    }
    const float scale = params.scale * 1.44269504f;
    Partial<head_dim> partial;
    while (key < kv_len) {
        const int valid_keys = kv_len - key;
        key += step;
        float scores[4];
        score<T>(scores, keys, q, valid_keys, scale);
        if (key < kv_len) load_keys(keys, k_cache, key, params.max_len);
        attend<T>(scores, values, valid_keys, partial);
        if (key < kv_len) load_values(values, v_cache, key, params.max_len);
    }
    const int active_splits = gqa_active_splits(kv_len, plan.splits);
    if (split >= active_splits) return;

    // The warps become one: [warp][head][row] in shared memory.
    float* results = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = partial.sum[h];
#pragma unroll
        for (int mask = 4; mask < warp_size; mask *= 2) sum += shuffle_xor(sum, mask);
        if (2 * t + h >= n_heads) continue;
        float* mine = results + (warp * plan.heads + 2 * t + h) * row;
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                store(reinterpret_cast<float2*>(mine + j * 64 + g * 8 + p * 2),
                      make_float2(partial.out[j][p][h], partial.out[j][p][2 + h]));
            }
        }
        if (g == 0) store(reinterpret_cast<float2*>(mine + head_dim), make_float2(partial.maximum[h], sum));
    }
    block_barrier();  // all warps' results are there

    // From here on a thread has four dimensions of one head.
    constexpr int items_of_head = head_dim / 4;
    const int item = static_cast<int>(threadIdx.x), head = item / items_of_head, d = item % items_of_head * 4;
    static_assert(gqa_tile_heads * items_of_head <= gqa_threads);
    const bool has_item = head < n_heads;
    T* out = static_cast<T*>(params.out) + int64_t{b * params.n_heads + first_head + head} * head_dim + d;
    auto* counters = static_cast<uint32_t*>(params.workspace);
    // [unit][split][head][row]
    float* rows =
        reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) + gqa_counter_bytes(plan)) +
        (int64_t{unit} * plan.splits * plan.heads + head) * row;
    if (has_item) {
        Joined joined;
#pragma unroll
        for (int w = 0; w < gqa_warps; ++w) {
            const float* theirs = results + (w * plan.heads + head) * row;
            const float2 weight = load(reinterpret_cast<const float2*>(theirs + head_dim));
            joined.add(weight.x, weight.y, load(reinterpret_cast<const float4*>(theirs + d)));
        }
        if (active_splits == 1) {
            joined.finish(out);
        } else {
            float* mine = rows + int64_t{split} * plan.heads * row;
            store(reinterpret_cast<float4*>(mine + d),
                  make_float4(joined.out[0], joined.out[1], joined.out[2], joined.out[3]));
            if (d == 0)
                store(reinterpret_cast<float2*>(mine + head_dim), make_float2(joined.maximum, joined.sum));
        }
    }
    if (active_splits == 1) return;

    // The splits become one, by the block that arrives last.
    auto* is_last = reinterpret_cast<uint32_t*>(shared_memory());
    block_barrier();  // every thread has read results, and written its part of the split
    if (threadIdx.x == 0) {
        const auto last = static_cast<uint32_t>(active_splits) - 1;
        fence_device();  // the block's writes are visible before the arrival that announces them
        store(is_last, static_cast<uint32_t>(atomic_increment(counters + unit, last) == last));
        fence_device();  // what the others wrote before their arrivals is read after it
    }
    block_barrier();  // is_last is there
    if (load(is_last) == 0 || !has_item) return;
    constexpr int at_once = 8;
    Joined joined;
    for (int first = 0; first < active_splits; first += at_once) {
        float4 values[at_once];
        float2 weights[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            const float* theirs = rows + int64_t{min(first + i, active_splits - 1)} * plan.heads * row;
            values[i] = load_fresh(reinterpret_cast<const float4*>(theirs + d));
            weights[i] = load_fresh(reinterpret_cast<const float2*>(theirs + head_dim));
        }
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            if (first + i < active_splits) joined.add(weights[i].x, weights[i].y, values[i]);
        }
    }
    joined.finish(out);
}

template <class Body>
void with_head_dim(int head_dim, Body&& body) {
    if (head_dim == 64) return body(Constant<64>{});
    if (head_dim == 128) return body(Constant<128>{});
    throw std::invalid_argument("pykernels::gqa_decode: on CUDA, head_dim must be 64 or 128, got " +
                                std::to_string(head_dim));
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return static_cast<size_t>(
        gqa_workspace_bytes(plan_gqa_decode(params, device_limits().sm_count, false), params.head_dim));
}

void gqa_decode(const GqaDecodeParams& params, const Stream& stream) {
    const GqaPlan plan = plan_gqa_decode(params, device_limits().sm_count, stream.programmatic);
    with_type("gqa_decode", params.dtype, [&](auto type) {
        with_head_dim(params.head_dim, [&](auto head_dim) {
            launch(gqa_decode_kernel<decltype(type), decltype(head_dim)::value>, plan.units * plan.splits,
                   gqa_threads, static_cast<size_t>(plan.shared_bytes), stream, params, plan);
        });
    });
}

}  // namespace pykernels::cuda
