// What the op implementations share beside checks.h: checks that several ops make, the workspace, and the way
// to the launcher.
#pragma once

#include <cstddef>

#include "binding/checks.h"
#include "runtime/program.h"

namespace pykernels::binding {

using MaybeTensor = std::optional<Tensor>;

inline int32_t narrow(int64_t size) {
    return static_cast<int32_t>(size);
}

inline const Tensor* pointer(const MaybeTensor& tensor) {
    return tensor ? &*tensor : nullptr;
}

// Launches the op, or appends it to the program that this thread records. The first tensor's device is the
// op's.
void submit(Op op, std::initializer_list<const Tensor*> tensors);

void check_batch(const Argument& x);
void check_eps(const char* op, double eps);
void check_heads(const Argument& q, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim);

// How many heads the rows of the query weight make, which must fit head_dim and the KV heads.
int64_t checked_heads(const Argument& q_weight, int64_t n_kv_heads, int64_t head_dim);
void check_qkv_biases(const char* op, const Argument& x, int64_t q_rows, int64_t kv_rows,
                      const OptionalArgument& q_bias, const OptionalArgument& k_bias,
                      const OptionalArgument& v_bias);

// The cache, the angles and the position, as rope_kv_append and the qkv mat-vecs share them.
struct RopeArguments {
    Argument cos_sin, position, k_cache, v_cache;

    RopeArguments(const char* op, const Tensor& cos_sin_, const Tensor& position_, const Tensor& k_cache_,
                  const Tensor& v_cache_)
        : cos_sin(op, "cos_sin", cos_sin_),
          position(op, "position", position_),
          k_cache(op, "k_cache", k_cache_),
          v_cache(op, "v_cache", v_cache_) {}

    void check(const Argument& x, int64_t n_kv_heads, int64_t head_dim) const;
};

// The caller's workspace, checked, or a new one of `bytes` bytes.
class Workspace {
  public:
    Workspace(const char* op, MaybeTensor& given, size_t bytes, const Argument& like,
              std::initializer_list<const Argument*> others);
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

}  // namespace pykernels::binding
