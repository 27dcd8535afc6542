// A plug-in in CUDA: attention of one query a head over the whole cache, without splits, head_dim 64 or 128.
//
//   python -m bench.layer --backend=sdpa,examples/gqa_decode_plugin.cu:gqa_decode --mode=eager,graph
//
// A block has one query head of one sequence. Its warps take the slots in turn; a lane owns HEAD_DIM / 32
// elements of a row, so that a warp reads a row of K or V at once. Every warp keeps a running maximum m, the
// sum l of exp(score - m) and the weighted sum of the values; at the end the warps' results are brought to
// one maximum and added. It is written to be read: with one block a head it leaves most of a GPU idle.

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

constexpr int kWarps = 8;
constexpr int kPerLane = HEAD_DIM / 32;

// Where a warp has seen no slot yet. Finite, so that the difference of two of them is 0 and not NaN.
constexpr float kLowest = -3.0e38f;

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// launchtax: op=gqa_decode dtype=bf16 grid=n_heads,batch block=256
// launchtax: require=head_dim==64 or head_dim==128
extern "C" __global__ void gqa_decode(const bf16* q, const bf16* k_cache, const bf16* v_cache,
                                      const int* kv_len, bf16* out, int n_heads, int n_kv_heads, int max_len,
                                      float scale) {
    const int head = blockIdx.x, sequence = blockIdx.y;
    const int warp = threadIdx.x / 32, first = threadIdx.x % 32 * kPerLane;
    const int kv_head = head / (n_heads / n_kv_heads);
    const long long query = (static_cast<long long>(sequence) * n_heads + head) * HEAD_DIM + first;
    const long long cache =
        (static_cast<long long>(sequence) * n_kv_heads + kv_head) * max_len * HEAD_DIM + first;

    float query_row[kPerLane], sum[kPerLane] = {};
    for (int i = 0; i < kPerLane; ++i) query_row[i] = __bfloat162float(q[query + i]) * scale;

    float m = kLowest, l = 0.0f;
    for (int slot = warp; slot < kv_len[sequence]; slot += kWarps) {
        const bf16* key = k_cache + cache + static_cast<long long>(slot) * HEAD_DIM;
        const bf16* value = v_cache + cache + static_cast<long long>(slot) * HEAD_DIM;
        float score = 0.0f;
        for (int i = 0; i < kPerLane; ++i) score += query_row[i] * __bfloat162float(key[i]);
        score = warp_sum(score);
        const float largest = fmaxf(m, score);
        const float kept = __expf(m - largest), weight = __expf(score - largest);
        for (int i = 0; i < kPerLane; ++i) sum[i] = sum[i] * kept + weight * __bfloat162float(value[i]);
        l = l * kept + weight;
        m = largest;
    }

    __shared__ float all_m[kWarps], all_l[kWarps], all_sum[kWarps][HEAD_DIM];
    all_m[warp] = m;  // the same in every lane, as is l
    all_l[warp] = l;
    for (int i = 0; i < kPerLane; ++i) all_sum[warp][first + i] = sum[i];
    __syncthreads();  // all warps' results are there

    if (warp != 0) return;
    float largest = all_m[0];
    for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, all_m[w]);
    float total = 0.0f, result[kPerLane] = {};
    for (int w = 0; w < kWarps; ++w) {
        const float share = __expf(all_m[w] - largest);
        total += share * all_l[w];
        for (int i = 0; i < kPerLane; ++i) result[i] += share * all_sum[w][first + i];
    }
    for (int i = 0; i < kPerLane; ++i) out[query + i] = __float2bfloat16(result[i] / total);
}
