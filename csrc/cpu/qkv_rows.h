// The loop over the rows of q, k and v, with bias, QK norm, RoPE and the append to the cache, shared by
// qkv_gemv and int4_qkv_gemv.
#pragma once

#include "cpu/gemv_rows.h"
#include "cpu/rope.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// A chunk is a run of dimensions of one head. Rows d and d + head_dim / 2 are in one chunk, because RoPE
// rotates them together.
template <int batch, class T, class Rows, class Params>
class QkvRows {
  public:
    // `params` and the three weights outlive it.
    QkvRows(const Params& params, const Rows& q, const Rows& k, const Rows& v, int64_t row_bytes)
        : p_(params), q_(q), k_(k), v_(v), dim_(params.head_dim) {
        const int64_t chosen = chosen_plan(params).rows;
        pairs_ = smaller(dim_ / 2, larger<int64_t>(1, (chosen ? chosen : rows_per_chunk(row_bytes)) / 2));
        chunks_per_head_ = ceil_div(dim_ / 2, pairs_);
        if (p_.q_norm) sums_ = static_cast<float*>(p_.workspace);
    }

    int64_t n_chunks() const { return (p_.n_heads + 2 * p_.n_kv_heads) * chunks_per_head_; }

    void run(int64_t chunk) const {
        const int64_t head = chunk / chunks_per_head_, first = chunk % chunks_per_head_ * pairs_;
        const int64_t last = smaller(dim_ / 2, first + pairs_);
        if (head < p_.n_heads) {
            rows(q_, p_.q_bias, head, first, last, true, static_cast<T*>(p_.q_out), head * dim_,
                 p_.n_heads * dim_, 0);
            return;
        }
        const int64_t kv_head = (head - p_.n_heads) % p_.n_kv_heads;
        const int64_t offset = kv_head * p_.max_len * dim_,
                      stride = int64_t{p_.n_kv_heads} * p_.max_len * dim_;
        if (head < p_.n_heads + p_.n_kv_heads) {
            rows(k_, p_.k_bias, kv_head, first, last, true, static_cast<T*>(p_.k_cache), offset, stride,
                 dim_);
        } else {
            rows(v_, p_.v_bias, kv_head, first, last, false, static_cast<T*>(p_.v_cache), offset, stride,
                 dim_);
        }
    }

    // With a QK norm, what is left to do for q and k once their sums are there: a few KB, of one thread.
    void norm_heads() const {
        for (int b = 0; b < batch; ++b) {
            const int64_t position = p_.position[b];
            norm_heads_of(b, 0, p_.n_heads, p_.q_norm,
                          static_cast<T*>(p_.q_out) + int64_t{b} * p_.n_heads * dim_, dim_);
            norm_heads_of(
                b, p_.n_heads, p_.n_kv_heads, p_.k_norm,
                static_cast<T*>(p_.k_cache) + (int64_t{b} * p_.n_kv_heads * p_.max_len + position) * dim_,
                p_.max_len * dim_);
        }
    }

  private:
    // Heads `first` to first + count - 1 of the kept sums; the result of one lies head_stride after the
    // last's.
    void norm_heads_of(int b, int64_t first, int64_t count, const void* norm_, T* out,
                       int64_t head_stride) const {
        const float* sums = sums_ + (int64_t{b} * (p_.n_heads + p_.n_kv_heads) + first) * dim_;
        const auto* norm = static_cast<const T*>(norm_);
        const float* angles = p_.cos_sin + p_.position[b] * dim_;
        const int64_t half = dim_ / 2, group = p_.norms_all_heads ? count : 1;  // heads normalised together
        float scale = 0;
        for (int64_t head = 0; head < count; ++head, sums += dim_, out += head_stride) {
            if (head % group == 0) {
                float squares = 0;
                for (int64_t i = 0; i < group * dim_; ++i) squares += sums[i] * sums[i];
                scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(group * dim_) + p_.eps);
            }
            const T* weight = p_.norms_all_heads ? norm + head * dim_ : norm;
            for (int64_t d = 0; d < half; ++d) {
                float low = sums[d] * scale * (to_float(weight[d]) + p_.norm_offset);
                float high = sums[half + d] * scale * (to_float(weight[half + d]) + p_.norm_offset);
                rotate(angles, d, half, low, high);
                from_float(low, out + d);
                from_float(high, out + half + d);
            }
        }
    }

    // The pairs [first, last) of one head, written to out + offset + b * batch_stride + position[b] *
    // slot_stride. One copy for q, k and v.
    [[gnu::noinline]] void rows(const Rows& weight, const void* bias_, int64_t head, int64_t first,
                                int64_t last, bool rotated, T* out, int64_t offset, int64_t batch_stride,
                                int64_t slot_stride) const {
        const auto* bias = bias_ ? static_cast<const T*>(bias_) + head * dim_ : nullptr;
        const int64_t half = dim_ / 2, row = head * dim_;
        float low[batch][max_pairs], high[batch][max_pairs];
        dot_run<batch>(weight, row + first, row + last, [&](int64_t n, const float* sums) {
            for (int b = 0; b < batch; ++b) low[b][n - row - first] = sums[b];
        });
        dot_run<batch>(weight, row + half + first, row + half + last, [&](int64_t n, const float* sums) {
            for (int b = 0; b < batch; ++b) high[b][n - row - half - first] = sums[b];
        });
        for (int b = 0; b < batch; ++b) {
            const int64_t position = p_.position[b];
            const float* angles = p_.cos_sin + position * dim_;
            T* to = out + offset + b * batch_stride + position * slot_stride;
            float* kept = nullptr;
            if (rotated && sums_) {
                const int64_t heads_before = slot_stride ? p_.n_heads : 0;  // K has a slot, q has none
                kept = sums_ + (int64_t{b} * (p_.n_heads + p_.n_kv_heads) + heads_before + head) * dim_;
            }
            for (int64_t d = first; d < last; ++d) {
                float a = low[b][d - first] + (bias ? to_float(bias[d]) : 0.0f);
                float c = high[b][d - first] + (bias ? to_float(bias[half + d]) : 0.0f);
                if (kept) {
                    kept[d] = a;
                    kept[half + d] = c;
                    continue;
                }
                if (rotated) rotate(angles, d, half, a, c);
                from_float(a, to + d);
                from_float(c, to + half + d);
            }
        }
    }

    static constexpr int64_t max_pairs = 128;  // head_dim is at most 256

    const Params& p_;
    const Rows &q_, &k_, &v_;
    int64_t dim_, pairs_, chunks_per_head_;
    float* sums_ =
        nullptr;  // [batch, n_heads + n_kv_heads, head_dim] in the workspace; null without a QK norm
};

// q out, k and v appended to the cache. Rows is a weight as in gemv_rows.h.
template <int batch, class T, class Rows, class Params>
inline void qkv_rows(const Params& params, const Rows& q, const Rows& k, const Rows& v, int64_t row_bytes) {
    const QkvRows<batch, T, Rows, Params> kernel(params, q, k, v, row_bytes);
    parallel_chunks(kernel.n_chunks(), [&](int64_t chunk) { kernel.run(chunk); });
    if (params.q_norm) kernel.norm_heads();
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
