// embedding: out[b] = table[token[b]]. One block per row; a thread copies 16 bytes at a time, or one element
// where rows are not 16-byte aligned.

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

constexpr int threads = 256;

template <class Element>
__global__ void __launch_bounds__(threads)
    embedding_kernel(const __grid_constant__ EmbeddingParams params, int row_elements) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    // As clamp_index(), of 64 bits.
    const auto token = static_cast<int64_t>(
        min(static_cast<uint64_t>(load(params.token + blockIdx.x)), static_cast<uint64_t>(params.vocab - 1)));
    const auto* row = static_cast<const Element*>(params.table) + token * row_elements;
    auto* out = static_cast<Element*>(params.out) + int64_t{blockIdx.x} * row_elements;
    for (int i = static_cast<int>(threadIdx.x); i < row_elements; i += threads) store(out + i, load(row + i));
}

}  // namespace

void embedding(const EmbeddingParams& params, const Stream& stream) {
    if (are_vectors(params.hidden, params.table, params.out)) {
        launch(embedding_kernel<uint4>, params.batch, threads, 0, stream, params,
               params.hidden / vector_elements);
    } else {
        launch(embedding_kernel<uint16_t>, params.batch, threads, 0, stream, params, params.hidden);
    }
}

}  // namespace pykernels::cuda
