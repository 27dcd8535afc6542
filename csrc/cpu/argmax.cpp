// argmax: the greedy token of each sequence, and the increment of position and kv_len. One thread makes one
// pass over the logits: a few hundred KB, after the hundreds of MB that lm_head has just streamed.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

// The lowest index of the largest value; the first NaN where there is one (as torch.argmax has it).
template <class T>
int64_t largest_index(const T* values, int64_t n) {
    int64_t best = 0;
    float largest = to_float(values[0]);
    for (int64_t i = 1; i < n && largest == largest; ++i) {
        const float value = to_float(values[i]);
        if (!(value <= largest)) {
            largest = value;
            best = i;
        }
    }
    return best;
}

}  // namespace

void argmax(const ArgmaxParams& params) {
    with_type(params.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t b = 0; b < params.batch; ++b) {
            params.token[b] =
                largest_index(static_cast<const T*>(params.logits) + b * params.vocab, params.vocab);
            if (params.position != nullptr && params.position[b] < params.max_len - 1) {
                params.position[b] += 1;
                params.kv_len[b] += 1;
            }
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
