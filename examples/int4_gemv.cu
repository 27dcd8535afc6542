// A 4-bit GEMV in CUDA source, as bench.int4 takes it: copy this file and put your kernel here.
//
//   python -m bench.int4 --validate --kernel=examples/int4_gemv.cu:int4_gemv
//   python -m bench.int4 --kernel=native,examples/int4_gemv.cu:int4_gemv --model=llama-3.1-8b --mode=graph
//
// out[b, n] = sum over k of x[b, k] * (q[n, k] - zero[n, g]) * scale[n, g], where g = k / GROUP_SIZE.
//
// A warp has one row and one sequence; of every 32 words of the row, eight elements each, a lane takes one,
// so that the warp reads 128 neighbouring bytes of packed at once. The elements of a word are of one group.
// It is written to be read: a lane loads 4 bytes where it could load 16, and every sequence of the batch
// reads the weights anew.

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

constexpr int kWarps = 4;  // rows of a block
constexpr int kWords = N_IN / 8;

// Bits 4i to 4i + 3 of a word hold its element kElement[i] (docs/int4.md).
__device__ constexpr int kElement[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// launchtax: op=int4_gemv dtype=bf16 grid=ceil_div(n_out,4),batch block=128
extern "C" __global__ void int4_gemv(const bf16* x, const unsigned* packed, const bf16* scales,
                                     const unsigned char* zeros, bf16* out, int n_out) {
    const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n_out) return;  // the whole warp: the last block may have fewer rows
    x += static_cast<long long>(blockIdx.y) * N_IN;
    packed += static_cast<long long>(row) * kWords;

    float sum = 0.0f;
    for (int word = lane; word < kWords; word += 32) {
        const long long group = static_cast<long long>(row) * N_GROUPS + word * 8 / GROUP_SIZE;
        const int zero = zeros ? zeros[group] : 8;  // symmetric weights have none
        const unsigned nibbles = packed[word];
        float of_word = 0.0f;
        for (int i = 0; i < 8; ++i) {
            const int q = nibbles >> 4 * i & 15;
            of_word += __bfloat162float(x[word * 8 + kElement[i]]) * static_cast<float>(q - zero);
        }
        sum += of_word * __bfloat162float(scales[group]);
    }
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) out[static_cast<long long>(blockIdx.y) * n_out + row] = __float2bfloat16(sum);
}
