// embedding: out[b] = scale * table[token[b]]. One block per row; a thread copies 16 bytes at a time, or one
// element where rows are not 16-byte aligned.

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

constexpr int embedding_threads = 256;

// As clamp_index(), of 64 bits.
__device__ __forceinline__ int64_t embedding_token(const EmbeddingParams& params) {
    return static_cast<int64_t>(
        min(static_cast<uint64_t>(load(params.token + blockIdx.x)), static_cast<uint64_t>(params.vocab - 1)));
}

template <class Element>
__global__ void __launch_bounds__(embedding_threads)
    embedding_kernel(const __grid_constant__ EmbeddingParams params, int row_elements) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    const auto* row = static_cast<const Element*>(params.table) + embedding_token(params) * row_elements;
    auto* out = static_cast<Element*>(params.out) + int64_t{blockIdx.x} * row_elements;
    for (int i = static_cast<int>(threadIdx.x); i < row_elements; i += embedding_threads)
        store(out + i, load(row + i));
}

// One element at a time: a row is a few KB.
template <class T>
__global__ void __launch_bounds__(embedding_threads)
    scaled_embedding_kernel(const __grid_constant__ EmbeddingParams params) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    const T* row = static_cast<const T*>(params.table) + embedding_token(params) * params.hidden;
    T* out = static_cast<T*>(params.out) + int64_t{blockIdx.x} * params.hidden;
    for (int i = static_cast<int>(threadIdx.x); i < params.hidden; i += embedding_threads)
        store1(out + i, load1(row + i) * params.scale);
}

}  // namespace

void embedding(const EmbeddingParams& params, const Stream& stream) {
    if (params.scale != 1) {
        with_type("embedding", params.dtype, [&](auto type) {
            launch(scaled_embedding_kernel<decltype(type)>, params.batch, embedding_threads, 0, stream,
                   params);
        });
    } else if (are_vectors(params.hidden, params.table, params.out)) {
        launch(embedding_kernel<uint4>, params.batch, embedding_threads, 0, stream, params,
               params.hidden / vector_elements);
    } else {
        launch(embedding_kernel<uint16_t>, params.batch, embedding_threads, 0, stream, params, params.hidden);
    }
}

}  // namespace pykernels::cuda
