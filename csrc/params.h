// One plain struct per op: what a launcher needs, and nothing of torch.
//
// Every pointer has its shape beside it; tensors are dense and row-major. `dtype` is the type of
// activations, weights and cache alike; anything else says its own type. A pointer marked "or null"
// switches its part of the op off. Whoever fills a struct has checked it (binding/), so launchers
// trust it. The structs are trivially copyable: they travel as __grid_constant__ kernel arguments.
#pragma once

#include <cstdint>

namespace pykernels {

enum class Dtype : int32_t { float32, bfloat16, float16 };

// How softmax keeps its exponentials in range: less the maximum so far, or less one phi for all
// (unified_softmax.h).
enum class Softmax : int32_t { online, unified };

// silu(x) = x / (1 + exp(-x)); gelu_tanh(x) = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
enum class Activation : int32_t { silu, gelu_tanh };

constexpr int64_t dtype_bytes(Dtype dtype) {
    return dtype == Dtype::float32 ? 4 : 2;
}

constexpr int max_batch = 8;

// No dimension of an op's tensor is larger, but for buffers counted in 64 bits (add, the ceilings). It lets
// kernels compute in 32 bits: max_batch rows of the largest size in float32 are 2^29 bytes, and a head's
// cache of the largest max_len and a head_dim of 128 has 2^31 elements.
constexpr int64_t max_size = int64_t{1} << 24;

// out = x / sqrt(mean(x^2) + eps) * (weight + norm_offset) + residual
struct RmsnormParams {
    const void* x;       // [batch, hidden]; batch may be above max_batch
    const void* weight;  // [hidden]
    void* out;           // [batch, hidden]
    int32_t batch, hidden;
    float eps;
    Dtype dtype;
    const void* residual = nullptr;  // [batch, hidden] or null
    float norm_offset = 0;
};

// out = cap(scale * (x @ weight^T + bias)) + residual; cap(y) = softcap * tanh(y / softcap), y where softcap
// is 0
struct GemvParams {
    const void* x;         // [batch, in_features]
    const void* weight;    // [out_features, in_features]
    const void* bias;      // [out_features] or null
    const void* residual;  // [batch, out_features] or null
    void* out;             // [batch, out_features]
    int32_t batch, in_features, out_features;
    Dtype dtype;
    float scale = 1;
    float softcap = 0;
};

// Rotates q and k by the angles of each sequence's position and appends k and v to the cache there.
// A head's dimension d pairs with d + head_dim / 2 (the "rotate half" convention of Llama checkpoints).
struct RopeKvAppendParams {
    const void* q;            // [batch, n_heads, head_dim]
    const void* k;            // [batch, n_kv_heads, head_dim]
    const void* v;            // [batch, n_kv_heads, head_dim]
    const float* cos_sin;     // [max_position, head_dim] float32: head_dim / 2 cosines, then the sines
    const int32_t* position;  // [batch] int32, in [0, min(max_position, max_len))
    void* q_out;              // [batch, n_heads, head_dim]
    void* k_cache;            // [batch, n_kv_heads, max_len, head_dim]
    void* v_cache;            // [batch, n_kv_heads, max_len, head_dim]
    int32_t batch, n_heads, n_kv_heads, head_dim, max_len, max_position;
    Dtype dtype;
};

// One query token a sequence; query head h reads KV head h / (n_heads / n_kv_heads).
// out = softmax(scale * q K^T) V over the first kv_len[b] slots; what lies past them is never read into the
// sum.
struct GqaDecodeParams {
    const void* q;          // [batch, n_heads, head_dim]
    const void* k_cache;    // [batch, n_kv_heads, max_len, head_dim]
    const void* v_cache;    // [batch, n_kv_heads, max_len, head_dim]
    const int32_t* kv_len;  // [batch] int32, in [1, max_len]
    void* out;              // [batch, n_heads, head_dim]
    void* workspace;        // workspace_bytes bytes, 64-byte aligned
    int32_t batch, n_heads, n_kv_heads, head_dim, max_len;
    float scale;
    Dtype dtype;
    float phi = 0;                // of softmax unified
    int64_t workspace_bytes = 0;  // at least gqa_decode_workspace_bytes() when made; it bounds the splits
    float softcap = 0;            // scores are softcap * tanh(scale * q K^T / softcap); 0: as they are
    Softmax softmax = Softmax::online;
};

// out = activation(gate) * up
struct SiluMulParams {
    const void* gate;  // [batch, features]
    const void* up;    // [batch, features]
    void* out;         // [batch, features]
    int32_t batch, features;
    Dtype dtype;
    Activation activation = Activation::silu;
};

// out = activation(n @ gate_weight^T) * (n @ up_weight^T), n = rmsnorm(x, norm_weight, eps, norm_offset), or
// x where norm_weight is null
struct SwigluGemvParams {
    const void* x;            // [batch, in_features]
    const void* norm_weight;  // [in_features] or null
    const void* gate_weight;  // [out_features, in_features]
    const void* up_weight;    // [out_features, in_features]
    void* out;                // [batch, out_features]
    void* workspace;  // swiglu_gemv_workspace_bytes() bytes, 64-byte aligned; may be null where that is 0
    int32_t batch, in_features, out_features;
    float eps;
    Dtype dtype;
    float norm_offset = 0;
    Activation activation = Activation::silu;
};

// The attention half's GEMV: n = rmsnorm(x, norm_weight, eps, norm_offset), or x where norm_weight is null;
// q, k, v = n @ weight^T + bias; with a QK norm q and k = rmsnorm of q and k, each head by itself or all
// heads of a sequence together; then rope_kv_append on them.
struct QkvGemvParams {
    const void* x;            // [batch, hidden]
    const void* norm_weight;  // [hidden] or null
    const void* q_weight;     // [n_heads * head_dim, hidden]
    const void* k_weight;     // [n_kv_heads * head_dim, hidden]
    const void* v_weight;     // [n_kv_heads * head_dim, hidden]
    const void* q_bias;       // [n_heads * head_dim] or null (then all three are)
    const void* k_bias;       // [n_kv_heads * head_dim] or null
    const void* v_bias;       // [n_kv_heads * head_dim] or null
    const float* cos_sin;     // [max_position, head_dim] float32: head_dim / 2 cosines, then the sines
    const int32_t* position;  // [batch] int32, in [0, min(max_position, max_len))
    void* q_out;              // [batch, n_heads, head_dim]
    void* k_cache;            // [batch, n_kv_heads, max_len, head_dim]
    void* v_cache;            // [batch, n_kv_heads, max_len, head_dim]
    void* workspace;          // qkv_gemv_workspace_bytes() bytes, 64-byte aligned
    int32_t batch, hidden, n_heads, n_kv_heads, head_dim, max_len, max_position;
    float eps;
    Dtype dtype;
    float norm_offset = 0;
    const void* q_norm = nullptr;  // [head_dim], or [n_heads * head_dim] with norms_all_heads; or null
    const void* k_norm = nullptr;  // [head_dim], or [n_kv_heads * head_dim]; null exactly where q_norm is
    int32_t norms_all_heads = 0;   // 1: the mean of squares is over all heads
};

// Where the sums of q and k wait for the QK norm, at the beginning of a workspace: float32 [batch, n_heads +
// n_kv_heads, head_dim], then uint32 counters [batch, n_heads + n_kv_heads]. On CUDA all of it is zero
// between two launches; the CPU needs no counters.
template <class Params>
constexpr int64_t qk_norm_bytes(const Params& p) {
    if (p.q_norm == nullptr) return 0;
    const int64_t heads = int64_t{p.batch} * (p.n_heads + p.n_kv_heads);
    return (4 * heads * (p.head_dim + 1) + 63) / 64 * 64;
}

// A 4-bit weight, w[n, k] = (q[n, k] - zero) * scale with the zero and scale of row n and of k's group. The
// groups of a row are equal: in_features / n_groups is 32, 64, a multiple of 128, or in_features.
// docs/int4.md draws the layout.
struct Int4WeightParams {
    const uint8_t* packed;  // [out_features, in_features / 2] uint8, 16-byte aligned: 32 elements in 16 bytes
    const void* scales;     // [out_features, n_groups]
    const uint8_t* zeros;   // [out_features, n_groups] uint8, or null: 8 throughout
    const int32_t* perm;    // [in_features] int32, or null: column k multiplies x[perm[k]]
    int32_t n_groups;
};

// gemv with a 4-bit weight; in_features is a multiple of 32
struct Int4GemvParams {
    const void* x;            // [batch, in_features]
    Int4WeightParams weight;  // out_features x in_features
    const void* bias;         // [out_features] or null
    const void* residual;     // [batch, out_features] or null
    void* out;                // [batch, out_features]
    void* workspace;          // int4_gemv_workspace_bytes() bytes, 64-byte aligned; not used on CUDA
    int32_t batch, in_features, out_features;
    Dtype dtype;
    float scale = 1;
    float softcap = 0;
};

// swiglu_gemv with 4-bit weights
struct Int4SwigluGemvParams {
    const void* x;            // [batch, in_features]
    const void* norm_weight;  // [in_features] or null
    Int4WeightParams gate;    // out_features x in_features
    Int4WeightParams up;      // out_features x in_features
    void* out;                // [batch, out_features]
    void* workspace;          // int4_swiglu_gemv_workspace_bytes() bytes, 64-byte aligned; not used on CUDA
    int32_t batch, in_features, out_features;
    float eps;
    Dtype dtype;
    float norm_offset = 0;
    Activation activation = Activation::silu;
};

// qkv_gemv with 4-bit weights
struct Int4QkvGemvParams {
    const void* x;            // [batch, hidden]
    const void* norm_weight;  // [hidden] or null
    Int4WeightParams q;       // n_heads * head_dim x hidden
    Int4WeightParams k;       // n_kv_heads * head_dim x hidden
    Int4WeightParams v;       // n_kv_heads * head_dim x hidden
    const void* q_bias;       // [n_heads * head_dim] or null (then all three are)
    const void* k_bias;       // [n_kv_heads * head_dim] or null
    const void* v_bias;       // [n_kv_heads * head_dim] or null
    const float* cos_sin;     // [max_position, head_dim] float32: head_dim / 2 cosines, then the sines
    const int32_t* position;  // [batch] int32, in [0, min(max_position, max_len))
    void* q_out;              // [batch, n_heads, head_dim]
    void* k_cache;            // [batch, n_kv_heads, max_len, head_dim]
    void* v_cache;            // [batch, n_kv_heads, max_len, head_dim]
    void* workspace;          // int4_qkv_gemv_workspace_bytes() bytes, 64-byte aligned
    int32_t batch, hidden, n_heads, n_kv_heads, head_dim, max_len, max_position;
    float eps;
    Dtype dtype;
    float norm_offset = 0;
    const void* q_norm = nullptr;  // as in QkvGemvParams
    const void* k_norm = nullptr;
    int32_t norms_all_heads = 0;
};

// out = a + scale * b
struct AddParams {
    const void* a;  // [count]
    const void* b;  // [count]
    void* out;      // [count]
    int64_t count;
    Dtype dtype;
    float scale = 1;
};

// out[b] = scale * table[token[b]]
struct EmbeddingParams {
    const int64_t* token;  // [batch] int64, in [0, vocab)
    const void* table;     // [vocab, hidden]
    void* out;             // [batch, hidden]
    int32_t batch, hidden, vocab;
    Dtype dtype;
    float scale = 1;
};

// token[b] = the lowest index of the largest of logits[b], the first NaN where there is one. With `position`
// and `kv_len` the sequence steps on: both grow by one, so that the same ops run again decode the next token.
// At the cache's last slot they stay: a graph replayed too often rewrites that slot and nothing beyond.
struct ArgmaxParams {
    const void* logits;  // [batch, vocab]
    int64_t* token;      // [batch] int64
    int32_t* position;   // [batch] int32, in [0, max_len), or null
    int32_t* kv_len;     // [batch] int32; null exactly where position is
    int32_t batch, vocab, max_len;
    Dtype dtype;
};

// The controls of the measurement: nothing, a known duration, and the memory's own speed.

struct NullParams {};

struct SpinParams {
    double duration_us;
};

struct CeilingReadParams {
    const void* src;  // [bytes], 64-byte aligned
    void* sink;       // [8] uint64: receives a checksum, so that no compiler drops the reads
    int64_t bytes;    // a multiple of 64
};

struct CeilingCopyParams {
    const void* src;  // [bytes], 64-byte aligned
    void* out;        // [bytes], 64-byte aligned
    int64_t bytes;    // a multiple of 64; a copy moves twice as many
};

}  // namespace pykernels
