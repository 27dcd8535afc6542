// gqa_decode: out = softmax(scale * q K^T) V over the first kv_len slots, one query token a sequence.
//
// A block takes one KV head, up to eight of its query heads (K and V are read once for all of them), and one
// split of the KV axis; each of its warps streams its own keys through its ring (common/warp_ring.cuh).
// head_dim / 8 lanes share a key, eight dimensions each, so a warp works on 2 keys (head_dim 128) or 4 (64)
// at once. Every such group of lanes keeps its own running maximum, sum and output (online softmax, in base
// 2); groups, then warps, then splits are joined by their log-sum-exp (Flash-Decoding). The split that
// arrives last joins all of them.
//
// Least bytes: K and V of kv_len slots, once. What limits it: latency up to some thousand keys, memory
// beyond.
//
// Before wait_for_producers() it reads kv_len and all slots but the newest, which only the kernel just before
// it may have written: whoever writes older slots or kv_len must not be the launch right before a
// programmatic one.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/warp_ring.cuh"
#include "cuda/gqa_decode_plan.h"

namespace pykernels::cuda {
namespace {

// Finite, so that an empty share's factor exp2(lowest - maximum) is 0 and not NaN.
constexpr float lowest = -1e30f;

// What a group of lanes knows of its heads: a lane holds eight of the head_dim sums.
template <int heads>
struct Partial {
    float maximum[heads], sum[heads];
    Floats8 out[heads];
};

template <int heads>
__device__ __forceinline__ void rescale(Partial<heads>& partial, int h, float factor) {
    partial.sum[h] *= factor;
#pragma unroll
    for (int j = 0; j < 8; ++j) partial.out[h][j] *= factor;
}

// The groups of a warp become one: all lanes with the same dimensions end with the same numbers.
template <int heads, int group_lanes>
__device__ __forceinline__ void join_groups(Partial<heads>& partial) {
#pragma unroll
    for (int mask = group_lanes; mask < warp_size; mask *= 2) {
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            const float other = shuffle_xor(partial.maximum[h], mask);
            const float maximum = fmaxf(partial.maximum[h], other);
            rescale(partial, h, exp2_approximate(partial.maximum[h] - maximum));
            partial.maximum[h] = maximum;
            partial.sum[h] += shuffle_xor(partial.sum[h], mask);
#pragma unroll
            for (int j = 0; j < 8; ++j) partial.out[h][j] += shuffle_xor(partial.out[h][j], mask);
        }
    }
}

// K and V of `count` keys (the group's are group, group + keys_at_once, ...) into the partial.
template <class T, int head_dim, int heads>
__device__ __forceinline__ void attend(const T* keys, const T* values, int count, const Floats8 (&q)[heads],
                                       Partial<heads>& partial) {
    constexpr int group_lanes = head_dim / vector_elements, keys_at_once = warp_size / group_lanes;
    constexpr int steps = ring_piece_bytes / (head_dim * 2) / keys_at_once;
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    const int group = lane / group_lanes, first = lane % group_lanes * vector_elements;
    float scores[heads][steps];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
        const int key = step * keys_at_once + group;
        const bool valid = key < count;
        const Floats8 k = valid ? load8(keys + key * head_dim + first) : Floats8{};
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            const float score = warp_sum<group_lanes>(dot8(q[h], k, 0.0f));
            scores[h][step] = valid ? score : lowest;
        }
    }
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        float maximum = partial.maximum[h];
#pragma unroll
        for (int step = 0; step < steps; ++step) maximum = fmaxf(maximum, scores[h][step]);
        if (maximum > partial.maximum[h]) {
            rescale(partial, h, exp2_approximate(partial.maximum[h] - maximum));
            partial.maximum[h] = maximum;
        }
    }
#pragma unroll
    for (int step = 0; step < steps; ++step) {
        const int key = step * keys_at_once + group;
        if (key >= count) continue;  // what lies there is not ours to read
        const Floats8 v = load8(values + key * head_dim + first);
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            const float weight = exp2_approximate(scores[h][step] - partial.maximum[h]);
            partial.sum[h] += weight;
#pragma unroll
            for (int j = 0; j < 8; ++j) partial.out[h][j] += weight * v[j];
        }
    }
}

template <class T, int head_dim, int heads>
__global__ void __launch_bounds__(gqa_threads)
    gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params, const __grid_constant__ GqaPlan plan) {
    constexpr int group_lanes = head_dim / vector_elements, keys_at_once = warp_size / group_lanes;
    constexpr int piece_keys = ring_piece_bytes / (head_dim * 2);
    unsigned char* shared = shared_memory();
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size;
    const int unit = static_cast<int>(blockIdx.x) / plan.splits,
              split = static_cast<int>(blockIdx.x) % plan.splits;
    const int tile = unit % plan.tiles, kv_head = unit / plan.tiles % params.n_kv_heads;
    const int b = unit / plan.tiles / params.n_kv_heads;
    const int group_size = params.n_heads / params.n_kv_heads;
    const int first_head = kv_head * group_size + tile * plan.heads;
    const int n_heads = min(plan.heads, group_size - tile * plan.heads);

    WarpRing ring(shared + warp * ring_bytes(plan.n_stages),
                  reinterpret_cast<TransactionBarrier*>(shared + gqa_warps * ring_bytes(plan.n_stages)) +
                      warp * plan.n_stages,
                  plan.n_stages);
    warp_barrier();  // lane 0 has made the ring's barriers

    const int kv_len = load(params.kv_len + b);
    const int worker_keys = gqa_worker_keys(kv_len, plan.splits, keys_at_once);
    const int begin = min(kv_len, (split * gqa_warps + warp) * worker_keys);
    const int end = min(kv_len, begin + worker_keys);
    const int64_t slots = int64_t{b * params.n_kv_heads + kv_head} * params.max_len * head_dim;
    const T* k_cache = static_cast<const T*>(params.k_cache) + slots;
    const T* v_cache = static_cast<const T*>(params.v_cache) + slots;
    int next_key = begin;
    const auto issue_next = [&] {
        const int count = max(0, min(piece_keys, end - next_key));
        ring.issue(k_cache + int64_t{next_key} * head_dim, v_cache + int64_t{next_key} * head_dim,
                   count * head_dim * static_cast<int>(sizeof(T)));
        next_key += piece_keys;
    };
    int issued = 0;
    for (; issued < ring.n_stages() && min(next_key + piece_keys, end) < kv_len; ++issued) issue_next();
    launch_dependents();
    wait_for_producers();
    for (; issued < ring.n_stages(); ++issued) issue_next();

    // q with the scale and the change to base 2 folded in. A tile with fewer heads repeats its last one.
    Floats8 q[heads];
    const T* q_rows = static_cast<const T*>(params.q) + int64_t{b * params.n_heads + first_head} * head_dim;
    const float scale = params.scale * 1.44269504f;
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        q[h] = load8(q_rows + min(h, n_heads - 1) * head_dim + lane % group_lanes * vector_elements);
#pragma unroll
        for (int j = 0; j < 8; ++j) q[h][j] *= scale;
    }
    Partial<heads> partial;
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        partial.maximum[h] = lowest;
        partial.sum[h] = 0;
        partial.out[h] = Floats8{};
    }
    for (int key = begin; key < end; key += piece_keys) {
        const unsigned char* slot = ring.wait();
        attend<T, head_dim, heads>(reinterpret_cast<const T*>(slot),
                                   reinterpret_cast<const T*>(slot + ring_piece_bytes),
                                   min(piece_keys, end - key), q, partial);
        ring.release();
        issue_next();
    }
    join_groups<heads, group_lanes>(partial);

    // The warps become one. [warp][head][head_dim sums, maximum, sum]
    constexpr int row = head_dim + 2;
    float* results = reinterpret_cast<float*>(shared);
    block_barrier();  // every warp is done with its ring: results take its place
    if (lane < group_lanes) {
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            if (h >= n_heads) break;
            float* mine = results + (warp * plan.heads + h) * row;
#pragma unroll
            for (int j = 0; j < 8; ++j) store(mine + lane * vector_elements + j, partial.out[h][j]);
            if (lane == 0) {
                store(mine + head_dim, partial.maximum[h]);
                store(mine + head_dim + 1, partial.sum[h]);
            }
        }
    }
    block_barrier();  // all warps' results are there

    T* out = static_cast<T*>(params.out) + int64_t{b * params.n_heads + first_head} * head_dim;
    auto* counters = static_cast<uint32_t*>(params.workspace);
    float* partials =
        reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) + gqa_counter_bytes(plan)) +
        int64_t{unit} * plan.splits * plan.heads * row;
    for (int i = static_cast<int>(threadIdx.x); i < n_heads * head_dim; i += gqa_threads) {
        const int h = i / head_dim, d = i % head_dim;
        float maximum = lowest;
        for (int w = 0; w < gqa_warps; ++w) {
            maximum = fmaxf(maximum, load(results + (w * plan.heads + h) * row + head_dim));
        }
        float value = 0, sum = 0;
        for (int w = 0; w < gqa_warps; ++w) {
            const float* theirs = results + (w * plan.heads + h) * row;
            const float factor = exp2_approximate(load(theirs + head_dim) - maximum);
            value += factor * load(theirs + d);
            sum += factor * load(theirs + head_dim + 1);
        }
        if (plan.splits == 1) {
            store1(out + i, value / sum);
        } else {
            float* mine = partials + (split * plan.heads + h) * row;
            store(mine + d, value);
            if (d == 0) {
                store(mine + head_dim, maximum);
                store(mine + head_dim + 1, sum);
            }
        }
    }
    if (plan.splits == 1) return;

    // The splits become one, by the block that arrives last.
    auto* is_last = reinterpret_cast<uint32_t*>(shared);
    fence_device();   // this thread's part of the split is visible before the arrival that announces it
    block_barrier();  // every thread's is; and results has been read
    if (threadIdx.x == 0) {
        const uint32_t last = static_cast<uint32_t>(plan.splits) - 1;
        store(is_last, static_cast<uint32_t>(atomic_increment(counters + unit, last) == last));
        fence_device();  // what the others wrote before their arrivals is read after it
    }
    block_barrier();  // is_last is there
    const bool arrived_last = load(is_last) != 0;
    block_barrier();  // is_last has been read: factors take its place
    if (!arrived_last) return;
    float* factors = reinterpret_cast<float*>(shared);  // [split][head]: maximum, sum
    for (int i = static_cast<int>(threadIdx.x); i < plan.splits * n_heads; i += gqa_threads) {
        const int s = i / n_heads, h = i % n_heads;
        const float* theirs = partials + (s * plan.heads + h) * row + head_dim;
        store(factors + 2 * (s * plan.heads + h), load_fresh(theirs));
        store(factors + 2 * (s * plan.heads + h) + 1, load_fresh(theirs + 1));
    }
    block_barrier();  // factors are there
    for (int i = static_cast<int>(threadIdx.x); i < n_heads * head_dim; i += gqa_threads) {
        const int h = i / head_dim, d = i % head_dim;
        float maximum = lowest;
        for (int s = 0; s < plan.splits; ++s)
            maximum = fmaxf(maximum, load(factors + 2 * (s * plan.heads + h)));
        float value = 0, sum = 0;
#pragma unroll 4
        for (int s = 0; s < plan.splits; ++s) {
            const float factor = exp2_approximate(load(factors + 2 * (s * plan.heads + h)) - maximum);
            value += factor * load_fresh(partials + (s * plan.heads + h) * row + d);
            sum += factor * load(factors + 2 * (s * plan.heads + h) + 1);
        }
        store1(out + i, value / sum);
    }
}

// The smallest instantiated number of heads that holds `heads`. 4, 7 and 8 are those of the three models'
// groups.
template <class Body>
void with_heads(int heads, Body&& body) {
    if (heads == 1) return body(Constant<1>{});
    if (heads == 2) return body(Constant<2>{});
    if (heads <= 4) return body(Constant<4>{});
    if (heads <= 7) return body(Constant<7>{});
    return body(Constant<8>{});
}

template <class Body>
void with_head_dim(int head_dim, Body&& body) {
    if (head_dim == 64) return body(Constant<64>{});
    if (head_dim == 128) return body(Constant<128>{});
    throw std::invalid_argument("pykernels::gqa_decode: on CUDA, head_dim must be 64 or 128, got " +
                                std::to_string(head_dim));
}

GqaPlan plan_here(const GqaDecodeParams& params) {
    return plan_gqa_decode(params, device_limits().sm_count, device_limits().bulk_copy);
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return static_cast<size_t>(gqa_workspace_bytes(plan_here(params), params.head_dim));
}

void gqa_decode(const GqaDecodeParams& params, const Stream& stream) {
    const GqaPlan plan = plan_here(params);
    with_type("gqa_decode", params.dtype, [&](auto type) {
        with_head_dim(params.head_dim, [&](auto head_dim) {
            with_heads(plan.heads, [&](auto heads) {
                launch(gqa_decode_kernel<decltype(type), decltype(head_dim)::value, decltype(heads)::value>,
                       plan.units * plan.splits, gqa_threads, static_cast<size_t>(plan.shared_bytes), stream,
                       params, plan);
            });
        });
    });
}

}  // namespace pykernels::cuda
