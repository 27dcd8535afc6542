// out[i] = f(a[i], b[i]). A thread takes eight elements (16 bytes), or one where an operand is not 16-byte
// aligned.

#pragma once

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {

constexpr int elementwise_threads = 256;

template <class T, class Function>
__global__ void __launch_bounds__(elementwise_threads)
    elementwise_kernel(const T* a, const T* b, T* out, int64_t count, Function function) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    const int64_t i = (int64_t{blockIdx.x} * elementwise_threads + threadIdx.x) * vector_elements;
    if (i >= count) return;
    Floats8 left = load8(a + i);
    const Floats8 right = load8(b + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) left[j] = function(left[j], right[j]);
    store8(out + i, left);
}

template <class T, class Function>
__global__ void __launch_bounds__(elementwise_threads)
    elementwise_plain_kernel(const T* a, const T* b, T* out, int64_t count, Function function) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    const int64_t i = int64_t{blockIdx.x} * elementwise_threads + threadIdx.x;
    if (i < count) store1(out + i, function(load1(a + i), load1(b + i)));
}

template <class Function>
void launch_elementwise(const char* op, const void* a, const void* b, void* out, int64_t count, Dtype dtype,
                        Function function, const Stream& stream) {
    with_type(op, dtype, [&](auto type) {
        using T = decltype(type);
        const bool vectors = count % vector_elements == 0 && are_vectors(vector_elements, a, b, out);
        const int64_t items = vectors ? count / vector_elements : count;
        launch(vectors ? elementwise_kernel<T, Function> : elementwise_plain_kernel<T, Function>,
               static_cast<int>((items + elementwise_threads - 1) / elementwise_threads), elementwise_threads,
               0, stream, static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(out), count,
               function);
    });
}

}  // namespace pykernels::cuda
