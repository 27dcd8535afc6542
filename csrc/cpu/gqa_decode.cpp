// gqa_decode: out = softmax(scale * q K^T) V over kv_len slots, one query token a sequence, heads in groups.
//
// A chunk is (sequence, KV head, split of the KV axis). It reads its K and V once for all query heads of the
// group. 64 keys at a time it computes scores (key by key, K from memory), takes the softmax online in base
// 2, and adds p V, holding a slice of every head's output in registers. Each split stores its partial
// (maximum, sum, output) in the workspace; the calling thread combines them by their log-sum-exp: out = sum_i
// 2^(m_i - m) o_i / sum_i 2^(m_i - m) s_i.
//
// With a unified maximum (unified_softmax.h) phi takes the maximum's place, and partials add as they are. A
// head whose sum leaves the safe range is computed again online, bit for bit as without.
//
// Bytes: K and V up to kv_len once; slots past it are never touched. Limit: memory bandwidth, with the score
// and value arithmetic (4 * group * head_dim operations a key) close behind at group 7.
#include "cpu/chosen_plan.h"
#include "cpu/gqa_plan.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"
#include "ops.h"
#include "unified_softmax.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

constexpr int64_t max_head_dim = 256;
// Query heads of one pass; larger groups take more passes, with K and V then in the cache.
constexpr int max_heads = 8;
constexpr float lowest = -3.0e38f;  // below any score; -inf would make (-inf) - (-inf) of an empty maximum

template <class T>
struct Chunk {
    const T* q;  // [n_heads of this tile, head_dim]
    const T* k;  // [n_keys, head_dim]
    const T* v;  // [n_keys, head_dim]
    int64_t n_keys, head_dim;
    float scale;    // times log2(e): the softmax is taken in base 2
    float softcap;  // times log2(e); 0: none
    float phi;      // times log2(e); of a unified maximum
    Dtype dtype;
    float* partial;  // [heads, head_dim + 2]: maximum, sum, output
};

// scores[h][j] = dot(q[h], k[j]) * scale
template <int heads, class T>
void score_block(const Chunk<T>& c, const float* q, int64_t first, int64_t count,
                 float (*scores)[gqa_block]) {
    const int64_t dim = c.head_dim;
    for (int64_t j = 0; j < count; ++j) {
        const T* k = c.k + (first + j) * dim;
        F32 acc[heads];
        for (F32& sum : acc) sum = F32{};
        int64_t d = 0;
#if defined(__AVX512BF16__)
        if constexpr (sizeof(T) == 2 && !__is_same(T, Fp16)) {
            for (; d + 32 <= dim; d += 32) {
                prefetch_once(reinterpret_cast<const char*>(k + d) + 4096);
                const auto kv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(k + d));
#pragma GCC unroll 8
                for (int h = 0; h < heads; ++h) {
                    const auto qv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(c.q + h * dim + d));
                    acc[h] = _mm512_dpbf16_ps(acc[h], kv, qv);
                }
            }
        }
#endif
        for (; d + lanes <= dim; d += lanes) {
            prefetch_once(reinterpret_cast<const char*>(k + d) + 4096);
            const F32 kv = load(k + d);
#pragma GCC unroll 8
            for (int h = 0; h < heads; ++h) acc[h] = kv * load(q + h * dim + d) + acc[h];
        }
        for (int h = 0; h < heads; ++h) {
            float sum = reduce_add(acc[h]);
            for (int64_t t = d; t < dim; ++t) sum += to_float(k[t]) * q[h * dim + t];
            scores[h][j] = sum * c.scale;
        }
    }
}

// Replaces a block's scores by their exponentials against the running maximum. Returns the factor for earlier
// output.
float softmax_block(float* scores, int64_t count, float& maximum_so_far, float& sum) {
    for (int64_t j = count; j % lanes != 0; ++j) scores[j] = lowest;
    F32 top = broadcast(lowest);
    for (int64_t j = 0; j < count; j += lanes) top = maximum(load(scores + j), top);
    const float new_maximum = larger(maximum_so_far, reduce_max(top));
    const float correction = exp2(broadcast(maximum_so_far - new_maximum))[0];
    F32 added{};
    for (int64_t j = 0; j < count; j += lanes) {
        F32 p = exp2(load(scores + j) - new_maximum);
        if (j + lanes > count) {  // the padding must add nothing, even where every real score is as low
            for (int64_t i = count - j; i < lanes; ++i) p[i] = 0.0f;
        }
        store(scores + j, p);
        added += p;
    }
    maximum_so_far = new_maximum;
    sum = sum * correction + reduce_add(added);
    return correction;
}

// Replaces a block's scores by their exponentials against phi. An exponent past the highest makes the sum
// infinite, NaN makes it NaN.
float unified_block(float* scores, int64_t count, float phi, float highest, float& sum) {
    F32 added{}, top = broadcast(lowest);
    for (int64_t j = 0; j < count; j += lanes) {
        F32 exponent = load(scores + j) - phi;
        F32 p = exp2(exponent);
        if (j + lanes > count) {
            for (int64_t i = count - j; i < lanes; ++i) {
                exponent[i] = lowest;
                p[i] = 0.0f;
            }
        }
        top = maximum(exponent, top);
        store(scores + j, p);
        added += p;
    }
    sum += reduce_max(top) <= highest ? reduce_add(added) : __builtin_inff();
    return 1.0f;
}

// output[h] = output[h] * correction[h] + sum over j of p[h][j] * v[j], for dimensions [d, d + vectors *
// lanes)
template <int heads, int vectors, class T>
void value_slice(const Chunk<T>& c, int64_t first, int64_t count, int64_t d, const float (*p)[gqa_block],
                 const float* correction, float* output, int64_t output_stride) {
    F32 acc[heads][vectors];
    for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < vectors; ++i) {
            acc[h][i] = load(output + h * output_stride + d + i * lanes) * correction[h];
        }
    }
    for (int64_t j = 0; j < count; ++j) {
        const T* v = c.v + (first + j) * c.head_dim + d;
        prefetch_once(reinterpret_cast<const char*>(v) + 4096);
        F32 values[vectors];
        for (int i = 0; i < vectors; ++i) values[i] = load(v + i * lanes);
#pragma GCC unroll 8
        for (int h = 0; h < heads; ++h) {
#pragma GCC unroll 4
            for (int i = 0; i < vectors; ++i) acc[h][i] = values[i] * p[h][j] + acc[h][i];
        }
    }
    for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < vectors; ++i) store(output + h * output_stride + d + i * lanes, acc[h][i]);
    }
}

template <int heads, Softmax softmax, class T>
void attend(const Chunk<T>& c) {
    const int64_t dim = c.head_dim, stride = dim + 2;
    float scores[heads][gqa_block];
    float q[heads * max_head_dim];
    for (int64_t i = 0; i < heads * dim; ++i) q[i] = to_float(c.q[i]);
    float* output = c.partial + 2;
    float tops[heads], sums[heads], correction[heads];
    for (int h = 0; h < heads; ++h) {
        tops[h] = softmax == Softmax::unified ? 0.0f : lowest;
        sums[h] = 0.0f;
        for (int64_t d = 0; d < dim; ++d) output[h * stride + d] = 0.0f;
    }
    constexpr int vectors = lanes == 4 ? 1 : 2;  // heads * vectors sums must fit the registers
    for (int64_t first = 0; first < c.n_keys; first += gqa_block) {
        const int64_t count = smaller(gqa_block, c.n_keys - first);
        score_block<heads>(c, q, first, count, scores);
        if (c.softcap > 0) {
            for (int h = 0; h < heads; ++h) {
                for (int64_t j = 0; j < count; ++j)
                    scores[h][j] = c.softcap * __builtin_tanhf(scores[h][j] / c.softcap);
            }
        }
        for (int h = 0; h < heads; ++h) {
            if constexpr (softmax == Softmax::unified)
                correction[h] =
                    unified_block(scores[h], count, c.phi, unified_highest_exponent(c.dtype), sums[h]);
            else
                correction[h] = softmax_block(scores[h], count, tops[h], sums[h]);
        }
        int64_t d = 0;
        for (; d + vectors * lanes <= dim; d += vectors * lanes) {
            value_slice<heads, vectors>(c, first, count, d, scores, correction, output, stride);
        }
        for (; d + lanes <= dim; d += lanes) {
            value_slice<heads, 1>(c, first, count, d, scores, correction, output, stride);
        }
        for (; d < dim; ++d) {
            for (int h = 0; h < heads; ++h) {
                float sum = output[h * stride + d] * correction[h];
                for (int64_t j = 0; j < count; ++j)
                    sum += scores[h][j] * to_float(c.v[(first + j) * dim + d]);
                output[h * stride + d] = sum;
            }
        }
    }
    for (int h = 0; h < heads; ++h) {
        c.partial[h * stride] = tops[h];
        c.partial[h * stride + 1] = sums[h];
    }
}

template <Softmax softmax, class T>
void attend_tile(int heads, const Chunk<T>& chunk) {
    switch (heads) {
        case 1:
            return attend<1, softmax>(chunk);
        case 2:
            return attend<2, softmax>(chunk);
        case 3:
            return attend<3, softmax>(chunk);
        case 4:
            return attend<4, softmax>(chunk);
        case 5:
            return attend<5, softmax>(chunk);
        case 6:
            return attend<6, softmax>(chunk);
        case 7:
            return attend<7, softmax>(chunk);
        default:
            return attend<8, softmax>(chunk);
    }
}

// Combines the splits of one query head. `partials` are split_stride floats apart.
template <class T>
void combine(const float* partials, int64_t n_splits, int64_t split_stride, int64_t dim, T* out) {
    float top = partials[0];
    for (int64_t s = 1; s < n_splits; ++s) top = larger(top, partials[s * split_stride]);
    float sums[max_head_dim] = {};
    float total = 0.0f;
    for (int64_t s = 0; s < n_splits; ++s) {
        const float* partial = partials + s * split_stride;
        const float weight = exp2(broadcast(partial[0] - top))[0];
        total += weight * partial[1];
        for (int64_t d = 0; d < dim; ++d) sums[d] += weight * partial[2 + d];
    }
    const float inverse = 1.0f / total;
    for (int64_t d = 0; d < dim; ++d) from_float(sums[d] * inverse, out + d);
}

// The sums of the splits of one query head added up; false, and nothing is written, where they leave the safe
// range.
template <class T>
bool add_unified(const float* partials, int64_t n_splits, int64_t split_stride, const GqaDecodeParams& params,
                 int32_t kv_len, T* out) {
    float total = 0.0f;
    for (int64_t s = 0; s < n_splits; ++s) total += partials[s * split_stride + 1];
    if (!unified_in_range(total, kv_len, params.dtype)) return false;
    float sums[max_head_dim] = {};
    for (int64_t s = 0; s < n_splits; ++s) {
        for (int64_t d = 0; d < params.head_dim; ++d) sums[d] += partials[s * split_stride + 2 + d];
    }
    const float inverse = 1.0f / total;
    for (int64_t d = 0; d < params.head_dim; ++d) from_float(sums[d] * inverse, out + d);
    return true;
}

template <class T>
void gqa_decode_typed(const GqaDecodeParams& params) {
    const int64_t dim = params.head_dim, n_heads = params.n_heads, n_kv_heads = params.n_kv_heads;
    const int64_t group = n_heads / n_kv_heads;
    const int64_t max_splits = gqa_splits(params, num_threads(), chosen_plan(params).splits);
    const int64_t partial_floats = gqa_partial_floats(params), split_stride = group * partial_floats;
    auto* workspace = reinterpret_cast<float*>(
        static_cast<char*>(params.workspace) +
        unified_counter_bytes(params.softmax));  // [batch, n_kv_heads, max_splits, group, dim + 2]
    // A split of `heads` query heads, at most max_heads, of a KV head of all sequences'.
    const auto attend_split = [=](int64_t kv_head, int64_t split, int64_t first_head, int heads,
                                  Softmax softmax) {
        const int64_t kv_len = params.kv_len[kv_head / n_kv_heads];
        const int64_t split_keys = gqa_split_keys(kv_len, max_splits), first = split * split_keys;
        if (first >= kv_len) return;
        const int64_t slot = (kv_head * params.max_len + first) * dim;
        const Chunk<T> chunk{
            static_cast<const T*>(params.q) + (kv_head * group + first_head) * dim,
            static_cast<const T*>(params.k_cache) + slot,
            static_cast<const T*>(params.v_cache) + slot,
            smaller(split_keys, kv_len - first),
            dim,
            params.scale * log2_e,
            params.softcap * log2_e,
            params.phi * log2_e,
            params.dtype,
            workspace + (kv_head * max_splits + split) * split_stride + first_head * partial_floats};
        softmax == Softmax::unified ? attend_tile<Softmax::unified>(heads, chunk)
                                    : attend_tile<Softmax::online>(heads, chunk);
    };
    const auto heads_from = [=](int64_t head) {
        return static_cast<int>(smaller<int64_t>(max_heads, group - head));
    };
    parallel_chunks(params.batch * n_kv_heads * max_splits, [=](int64_t index) {
        for (int64_t head = 0; head < group; head += max_heads)
            attend_split(index / max_splits, index % max_splits, head, heads_from(head), params.softmax);
    });
    for (int64_t kv_head = 0; kv_head < params.batch * n_kv_heads; ++kv_head) {
        const int32_t kv_len = params.kv_len[kv_head / n_kv_heads];
        const int64_t n_splits = ceil_div(kv_len, gqa_split_keys(kv_len, max_splits));
        const float* partials = workspace + kv_head * max_splits * split_stride;
        T* out = static_cast<T*>(params.out) + kv_head * group * dim;
        for (int64_t first = 0; first < group; first += max_heads) {
            const int heads = heads_from(first);
            bool online[max_heads] = {}, any = false;  // the heads that are combined by their maxima
            for (int h = 0; h < heads; ++h) {
                online[h] = params.softmax == Softmax::online ||
                            !add_unified(partials + (first + h) * partial_floats, n_splits, split_stride,
                                         params, kv_len, out + (first + h) * dim);
                any = any || online[h];
            }
            if (!any) continue;
            if (params.softmax == Softmax::unified) {
                for (int h = 0; h < heads; ++h) *static_cast<uint32_t*>(params.workspace) += online[h];
                parallel_chunks(n_splits, [=](int64_t split) {
                    attend_split(kv_head, split, first, heads, Softmax::online);
                });
            }
            for (int h = 0; h < heads; ++h) {
                if (online[h])
                    combine(partials + (first + h) * partial_floats, n_splits, split_stride, dim,
                            out + (first + h) * dim);
            }
        }
    }
}

}  // namespace

void gqa_decode(const GqaDecodeParams& params) {
    with_type(params.dtype, [&](auto type) { gqa_decode_typed<decltype(type)>(params); });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
