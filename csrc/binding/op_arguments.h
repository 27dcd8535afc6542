// What the op implementations share beside checks.h: checks that several ops make, the workspace, and the way
// to the launcher.
#pragma once

#include <cstddef>

#include "binding/checks.h"
#include "runtime/program.h"

namespace pykernels::binding {

using MaybeTensor = std::optional<Tensor>;

// The caller's workspace, checked, or a new one of `bytes` bytes, which is put into `given`.
class Workspace {
  public:
    Workspace(const char* op, MaybeTensor& given, size_t bytes, const Argument& like);
    void* data() const { return argument_ ? argument_->data() : nullptr; }
    int64_t bytes() const { return argument_ ? argument_->bytes() : 0; }
    const Argument* argument() const { return argument_ ? &*argument_ : nullptr; }

  private:
    std::optional<Argument> argument_;
};

using Arguments = std::initializer_list<const Argument*>;  // null: absent

// What every op does with its checked arguments: what it writes may overlap nothing else, autograd is told
// (autograd.h), and the op is launched, or appended to the program that this thread records. The device is
// that of the first read argument; `read` has all that are read.
void submit(Op op, Arguments read, Arguments written, const Argument* workspace = nullptr);

void check_batch(const Argument& x);
void check_eps(const char* op, double eps);
void check_finite(const char* op, const char* name, double value);
void check_softcap(const char* op, double softcap);  // 0: none
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
    QkvArguments(const char* op, const Tensor& x_, const MaybeTensor& norm_weight_,
                 const MaybeTensor& q_bias_, const MaybeTensor& k_bias_, const MaybeTensor& v_bias_,
                 const Tensor& cos_sin_, const Tensor& position_, const Tensor& k_cache_,
                 const Tensor& v_cache_, const Tensor& out_, const MaybeTensor& q_norm_,
                 const MaybeTensor& k_norm_, double norm_offset)
        : x(op, "x", x_),
          out(op, "out", out_),
          norm_weight(op, "norm_weight", norm_weight_),
          q_norm(op, "q_norm", q_norm_),
          k_norm(op, "k_norm", k_norm_),
          q_bias(op, "q_bias", q_bias_),
          k_bias(op, "k_bias", k_bias_),
          v_bias(op, "v_bias", v_bias_),
          rope(op, cos_sin_, position_, k_cache_, v_cache_),
          op_(op),
          norm_offset_(norm_offset) {}

    // What does not depend on the weights. First, so that the sizes below are those of checked tensors.
    Dtype check_input() const;

    // The rest. `q_weight` is the checked argument whose rows are those of the query heads.
    void check(const Argument& q_weight, double eps) const;

    int64_t hidden() const { return x.size(1); }
    int64_t n_kv_heads() const { return rope.k_cache.size(1); }
    int64_t head_dim() const { return rope.k_cache.size(3); }
    int64_t kv_rows() const { return n_kv_heads() * head_dim(); }

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
        params.batch = x.size32(0);
        params.hidden = x.size32(1);
        params.n_heads = out.size32(1);
        params.n_kv_heads = rope.k_cache.size32(1);
        params.head_dim = rope.k_cache.size32(3);
        params.max_len = rope.k_cache.size32(2);
        params.max_position = rope.cos_sin.size32(0);
        params.eps = static_cast<float>(eps);
        params.dtype = dtype;
        params.norm_offset = static_cast<float>(norm_offset_);
        params.q_norm = q_norm.data();
        params.k_norm = k_norm.data();
        params.norms_all_heads = norms_all_heads();
    }

    // A QK norm's weights of all heads, not of one: of a single head they are both.
    bool norms_all_heads() const { return q_norm && q_norm->size(0) != head_dim(); }

    Argument x, out;
    OptionalArgument norm_weight, q_norm, k_norm, q_bias, k_bias, v_bias;
    RopeArguments rope;

  private:
    const char* op_;
    double norm_offset_;
};

}  // namespace pykernels::binding
