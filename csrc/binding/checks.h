// What an op asks of its arguments, asked once for every device. A failed check throws
// std::invalid_argument with one line: the op, the argument, what is allowed, what it got.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "params.h"

namespace pykernels::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A call of the stable ABI, checked. (torch's own macro for this has another name in every release.)
#define PYKERNELS_CHECK_TORCH(call)                                          \
    do {                                                                     \
        if ((call) != AOTI_TORCH_SUCCESS) {                                  \
            throw std::runtime_error("torch's stable ABI failed at " #call); \
        }                                                                    \
    } while (false)

std::string shape_text(const int64_t* sizes, size_t rank);
std::string dtype_text(ScalarType type);

// One tensor argument, its metadata read once: each look through the stable ABI is a call into libtorch.
// It refers to the tensor, which must outlive it.
class Argument {
  public:
    Argument(const char* op, const char* name, const Tensor& tensor);

    [[noreturn]] void fail(const std::string& allowed, const std::string& got) const;

    // Dense, row-major, of exactly these sizes; -1 allows any size of at least one.
    const Argument& shape(std::initializer_list<int64_t> expected) const;
    const Argument& shape_of(const Argument& other) const;
    const Argument& type(ScalarType expected) const;
    const Argument& like(const Argument& other) const;  // same dtype and device
    const Argument& same_device(const Argument& other) const;

    const char* name() const { return name_; }
    int64_t size(size_t dim) const { return sizes_[dim]; }
    int32_t size32(size_t dim) const;  // fails above max_size
    size_t rank() const { return rank_; }
    ScalarType scalar_type() const { return type_; }
    Dtype dtype() const;  // fails unless float32, bfloat16 or float16
    int64_t bytes() const { return bytes_; }
    void* data() const { return data_; }
    template <class T>
    const T* values() const {
        return static_cast<const T*>(data_);
    }
    const Tensor& tensor() const { return *tensor_; }

  private:
    const Argument& shape(const int64_t* expected, size_t rank) const;

    const char* op_;
    const char* name_;
    const Tensor* tensor_;
    const int64_t* sizes_;
    const int64_t* strides_;
    size_t rank_;
    ScalarType type_;
    int32_t device_type_, device_index_;
    int64_t bytes_;
    void* data_;
};

// An argument that may be absent.
class OptionalArgument {
  public:
    OptionalArgument(const char* op, const char* name, const std::optional<Tensor>& tensor) {
        if (tensor) argument_.emplace(op, name, *tensor);
    }
    explicit operator bool() const { return argument_.has_value(); }
    const Argument* operator->() const { return &*argument_; }
    const Argument& operator*() const { return *argument_; }
    void* data() const { return argument_ ? argument_->data() : nullptr; }
    const Argument* get() const { return argument_ ? &*argument_ : nullptr; }

  private:
    std::optional<Argument> argument_;
};

[[noreturn]] void fail(const char* op, const std::string& message);

// `written` shares no byte with any of `others`.
void check_no_overlap(const Argument& written, std::initializer_list<const Argument*> others);

}  // namespace pykernels::binding
