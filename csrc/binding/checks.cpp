#include "binding/checks.h"

namespace pykernels::binding {
namespace {

int64_t element_bytes(ScalarType type) {
    switch (type) {
        case ScalarType::Double:
        case ScalarType::Long:
            return 8;
        case ScalarType::Float:
        case ScalarType::Int:
            return 4;
        case ScalarType::Half:
        case ScalarType::BFloat16:
        case ScalarType::Short:
            return 2;
        case ScalarType::Byte:
        case ScalarType::Char:
        case ScalarType::Bool:
            return 1;
        default:
            return 16;  // complex at most: an upper bound serves the overlap check
    }
}

std::string device_text(int32_t type, int32_t index) {
    if (type == aoti_torch_device_type_cpu()) return "cpu";
    if (type == aoti_torch_device_type_cuda()) return "cuda:" + std::to_string(index);
    return "device type " + std::to_string(type);
}

}  // namespace

std::string shape_text(const int64_t* sizes, size_t rank) {
    std::string text = "[";
    for (size_t i = 0; i < rank; ++i) {
        if (i) text += ", ";
        text += sizes[i] < 0 ? "any" : std::to_string(sizes[i]);
    }
    return text + "]";
}

std::string dtype_text(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return "float32";
        case ScalarType::BFloat16:
            return "bfloat16";
        case ScalarType::Half:
            return "float16";
        case ScalarType::Double:
            return "float64";
        case ScalarType::Int:
            return "int32";
        case ScalarType::Long:
            return "int64";
        case ScalarType::Short:
            return "int16";
        case ScalarType::Char:
            return "int8";
        case ScalarType::Byte:
            return "uint8";
        case ScalarType::Bool:
            return "bool";
        default:
            return "dtype number " + std::to_string(static_cast<int>(type));
    }
}

void fail(const char* op, const std::string& message) {
    throw std::invalid_argument(std::string("pykernels::") + op + ": " + message);
}

Argument::Argument(const char* op, const char* name, const Tensor& tensor)
    : op_(op), name_(name), tensor_(&tensor), rank_(static_cast<size_t>(tensor.dim())) {
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    sizes_ = sizes.data();
    strides_ = strides.data();
    type_ = tensor.scalar_type();
    PYKERNELS_CHECK_TORCH(aoti_torch_get_device_type(tensor.get(), &device_type_));
    PYKERNELS_CHECK_TORCH(aoti_torch_get_device_index(tensor.get(), &device_index_));
    data_ = tensor.data_ptr();
    bytes_ = element_bytes(type_);
    for (size_t i = 0; i < rank_; ++i) bytes_ *= sizes_[i];
}

void Argument::fail(const std::string& allowed, const std::string& got) const {
    binding::fail(op_, std::string(name_) + " must be " + allowed + ", got " + got);
}

const Argument& Argument::shape(std::initializer_list<int64_t> expected) const {
    return shape(expected.begin(), expected.size());
}

const Argument& Argument::shape_of(const Argument& other) const {
    return shape(other.sizes_, other.rank_);
}

const Argument& Argument::shape(const int64_t* expected, size_t rank) const {
    bool matches = rank == rank_;
    for (size_t i = 0; matches && i < rank_; ++i) {
        matches = expected[i] < 0 ? sizes_[i] >= 1 : sizes_[i] == expected[i];
    }
    if (!matches) fail("of shape " + shape_text(expected, rank), shape_text(sizes_, rank_));
    int64_t stride = 1;
    for (size_t i = rank_; i-- > 0;) {
        if (sizes_[i] != 1 && strides_[i] != stride) {
            fail("contiguous",
                 "strides " + shape_text(strides_, rank_) + " for shape " + shape_text(sizes_, rank_));
        }
        stride *= sizes_[i];
    }
    return *this;
}

const Argument& Argument::type(ScalarType expected) const {
    if (type_ != expected) fail(dtype_text(expected), dtype_text(type_));
    return *this;
}

const Argument& Argument::same_device(const Argument& other) const {
    if (device_type_ != other.device_type_ || device_index_ != other.device_index_) {
        fail(std::string("on the device of ") + other.name_ + " (" +
                 device_text(other.device_type_, other.device_index_) + ")",
             device_text(device_type_, device_index_));
    }
    return *this;
}

const Argument& Argument::like(const Argument& other) const {
    if (type_ != other.type_) {
        fail(std::string("of the dtype of ") + other.name_ + " (" + dtype_text(other.type_) + ")",
             dtype_text(type_));
    }
    return same_device(other);
}

int32_t Argument::size32(size_t dim) const {
    if (sizes_[dim] > max_size) {
        fail("of sizes up to " + std::to_string(max_size), shape_text(sizes_, rank_));
    }
    return static_cast<int32_t>(sizes_[dim]);
}

Dtype Argument::dtype() const {
    switch (type_) {
        case ScalarType::Float:
            return Dtype::float32;
        case ScalarType::BFloat16:
            return Dtype::bfloat16;
        case ScalarType::Half:
            return Dtype::float16;
        default:
            fail("float32, bfloat16 or float16", dtype_text(type_));
    }
}

void check_no_overlap(const Argument& written, std::initializer_list<const Argument*> others) {
    const char* begin = static_cast<const char*>(written.data());
    const char* end = begin + written.bytes();
    for (const Argument* other : others) {
        if (other == nullptr) continue;
        const char* other_begin = static_cast<const char*>(other->data());
        if (begin < other_begin + other->bytes() && other_begin < end) {
            written.fail("memory of its own", std::string("memory that overlaps ") + other->name());
        }
    }
}

}  // namespace pykernels::binding
