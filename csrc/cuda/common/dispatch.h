// From runtime values to template arguments, one visible table each.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/common/numeric.cuh"
#include "params.h"

namespace pykernels::cuda {

// body(Bf16{}) or body(Fp16{})
template <class Body>
void with_type(const char* op, Dtype dtype, Body&& body) {
    switch (dtype) {
        case Dtype::bfloat16:
            return body(Bf16{});
        case Dtype::float16:
            return body(Fp16{});
        default:
            throw std::invalid_argument(std::string("pykernels::") + op +
                                        ": on CUDA, tensors must be bfloat16 or float16, got float32");
    }
}

template <int value>
using Constant = std::integral_constant<int, value>;

// Whether these addresses, and the stride of rows of `width` 16-bit elements, are multiples of 16 bytes.

template <class... Pointers>
bool are_vectors(int width, Pointers... pointers) {
    return width % vector_elements == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace pykernels::cuda
