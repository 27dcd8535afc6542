// qkv_gemv: RMSNorm in; q, k and v rows; bias; RoPE; q out, k and v appended to the cache.
//
// The caller's thread normalises x into the workspace. A chunk is a run of dimensions of one head: for q and
// k the rows d and d + head_dim / 2 come together, because RoPE turns them as a pair. Bytes: the three
// weights once. Limit: memory bandwidth.
#include "cpu/dot.h"
#include "cpu/kernels.h"
#include "cpu/rmsnorm.h"
#include "cpu/rope.h"
#include "cpu/thread_pool.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
class QkvGemv {
  public:
    explicit QkvGemv(const QkvGemvParams& params)
        : p_(params), x_(static_cast<const T*>(params.workspace)), k_(params.hidden), dim_(params.head_dim) {
        const int64_t row_bytes = k_ * static_cast<int64_t>(sizeof(T));
        pairs_ = smaller(dim_ / 2, larger<int64_t>(1, rows_per_chunk(row_bytes) / 2));
        chunks_per_head_ = ceil_div(dim_ / 2, pairs_);
    }

    int64_t n_chunks() const { return (p_.n_heads + 2 * p_.n_kv_heads) * chunks_per_head_; }

    void run(int64_t chunk) const {
        const int64_t head = chunk / chunks_per_head_, first = chunk % chunks_per_head_ * pairs_;
        const int64_t last = smaller(dim_ / 2, first + pairs_);
        if (head < p_.n_heads) {
            rows(p_.q_weight, p_.q_bias, head, first, last, true, static_cast<T*>(p_.q_out), head * dim_,
                 p_.n_heads * dim_, 0);
            return;
        }
        const int64_t kv_head = (head - p_.n_heads) % p_.n_kv_heads;
        const int64_t offset = kv_head * p_.max_len * dim_,
                      stride = int64_t{p_.n_kv_heads} * p_.max_len * dim_;
        if (head < p_.n_heads + p_.n_kv_heads) {
            rows(p_.k_weight, p_.k_bias, kv_head, first, last, true, static_cast<T*>(p_.k_cache), offset,
                 stride, dim_);
        } else {
            rows(p_.v_weight, p_.v_bias, kv_head, first, last, false, static_cast<T*>(p_.v_cache), offset,
                 stride, dim_);
        }
    }

  private:
    // The pairs [first, last) of one head, written to out + offset + b * batch_stride + position[b] *
    // slot_stride.
    void rows(const void* weight_, const void* bias_, int64_t head, int64_t first, int64_t last, bool turn,
              T* out, int64_t offset, int64_t batch_stride, int64_t slot_stride) const {
        const auto* weight = static_cast<const T*>(weight_) + head * dim_ * k_;
        const auto* bias = bias_ ? static_cast<const T*>(bias_) + head * dim_ : nullptr;
        const int64_t half = dim_ / 2;
        float low[batch][max_pairs], high[batch][max_pairs], sums[batch];
        for (int64_t d = first; d < last; ++d) {
            dot_row<batch>(weight + d * k_, x_, k_, sums);
            for (int b = 0; b < batch; ++b) low[b][d - first] = sums[b] + (bias ? to_float(bias[d]) : 0.0f);
        }
        for (int64_t d = first; d < last; ++d) {
            dot_row<batch>(weight + (half + d) * k_, x_, k_, sums);
            for (int b = 0; b < batch; ++b)
                high[b][d - first] = sums[b] + (bias ? to_float(bias[half + d]) : 0.0f);
        }
        for (int b = 0; b < batch; ++b) {
            const int64_t position = p_.position[b];
            const float* angles = p_.cos_sin + position * dim_;
            T* to = out + offset + b * batch_stride + position * slot_stride;
            for (int64_t d = first; d < last; ++d) {
                float a = low[b][d - first], c = high[b][d - first];
                if (turn) rotate(angles, d, half, a, c);
                from_float(a, to + d);
                from_float(c, to + half + d);
            }
        }
    }

    static constexpr int64_t max_pairs = 128;  // head_dim is at most 256

    const QkvGemvParams& p_;
    const T* x_;
    int64_t k_, dim_, pairs_, chunks_per_head_;
};

template <int batch, class T>
void qkv_gemv_typed(const QkvGemvParams& params) {
    for (int64_t b = 0; b < batch; ++b) {
        rmsnorm_row(static_cast<const T*>(params.x) + b * params.hidden,
                    static_cast<const T*>(params.norm_weight), params.hidden, params.eps,
                    static_cast<T*>(params.workspace) + b * params.hidden);
    }
    const QkvGemv<batch, T> kernel(params);
    parallel_chunks(kernel.n_chunks(), [&](int64_t chunk) { kernel.run(chunk); });
}

}  // namespace

void qkv_gemv(const QkvGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { qkv_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
