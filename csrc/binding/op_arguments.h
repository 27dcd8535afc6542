// What the op implementations share beside checks.h: checks that several ops make, the workspace, and the way
// to the launcher.
#pragma once

#include <array>
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

// The cache, the angles and the position, as rope_kv_append and the qkv GEMVs share them.
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

// What qkv_gemv and int4_qkv_gemv take alike: everything but the weights of the projections.
class QkvArguments {
  public:
    QkvArguments(const char* op, const Tensor& x_, const Tensor& norm_weight_, const MaybeTensor& q_bias_,
                 const MaybeTensor& k_bias_, const MaybeTensor& v_bias_, const Tensor& cos_sin_,
                 const Tensor& position_, const Tensor& k_cache_, const Tensor& v_cache_, const Tensor& out_)
        : x(op, "x", x_),
          norm_weight(op, "norm_weight", norm_weight_),
          out(op, "out", out_),
          q_bias(op, "q_bias", q_bias_),
          k_bias(op, "k_bias", k_bias_),
          v_bias(op, "v_bias", v_bias_),
          rope(op, cos_sin_, position_, k_cache_, v_cache_),
          op_(op) {}

    // What does not depend on the weights. First, so that the sizes below are those of checked tensors.
    Dtype check_input() const;

    // The rest. `q_weight` is the checked argument whose rows are those of the query heads.
    void check(const Argument& q_weight, double eps) const;

    int64_t hidden() const { return x.size(1); }
    int64_t n_kv_heads() const { return rope.k_cache.size(1); }
    int64_t head_dim() const { return rope.k_cache.size(3); }
    int64_t kv_rows() const { return n_kv_heads() * head_dim(); }

    // What the op writes beside its workspace; no weight may overlap any of it.
    std::array<const Argument*, 3> written() const { return {&out, &rope.k_cache, &rope.v_cache}; }

    // The fields of QkvGemvParams and Int4QkvGemvParams that come of these arguments.
    template <class Params>
    void fill(Params& params, double eps, Dtype dtype) const {
        params.x = x.data();
        params.norm_weight = norm_weight.data();
        params.q_bias = q_bias.data();
        params.k_bias = k_bias.data();
        params.v_bias = v_bias.data();
        params.cos_sin = rope.cos_sin.values<float>();
        params.position = rope.position.values<int32_t>();
        params.q_out = out.data();
        params.k_cache = rope.k_cache.data();
        params.v_cache = rope.v_cache.data();
        params.batch = narrow(x.size(0));
        params.hidden = narrow(hidden());
        params.n_heads = narrow(out.size(1));
        params.n_kv_heads = narrow(n_kv_heads());
        params.head_dim = narrow(head_dim());
        params.max_len = narrow(rope.k_cache.size(2));
        params.max_position = narrow(rope.cos_sin.size(0));
        params.eps = static_cast<float>(eps);
        params.dtype = dtype;
    }

    Argument x, norm_weight, out;
    OptionalArgument q_bias, k_bias, v_bias;
    RopeArguments rope;

  private:
    const char* op_;
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
