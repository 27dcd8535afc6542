// The int4 ops of the torch library: schemas, checks, and the way to the launcher, as torch_library.cpp has
// them for the others. A 4-bit weight is four arguments, those of pykernels.Int4Weight: packed, scales,
// zeros, perm.

#include "binding/op_arguments.h"
#include "binding/register_op.h"

namespace pykernels::binding {
namespace {

constexpr int64_t block = 32;  // elements of a row in 16 bytes, the kernels' load

// One 4-bit weight. Its arguments are named after it: gate_packed, gate_scales, ...
class Int4Argument {
  public:
    struct Names {
        const char *packed, *scales, *zeros, *perm;
    };

    Int4Argument(const char* op, const Names& names, const Tensor& packed_, const Tensor& scales_,
                 const MaybeTensor& zeros_, const MaybeTensor& perm_)
        : packed(op, names.packed, packed_),
          scales(op, names.scales, scales_),
          zeros(op, names.zeros, zeros_),
          perm(op, names.perm, perm_) {}

    // -1 rows: any number.
    void check(const Argument& x, int64_t rows) const {
        const int64_t in_features = x.size(1);
        if (in_features % block != 0) {
            x.fail("of a multiple of " + std::to_string(block) + " columns",
                   std::to_string(in_features) + " columns");
        }
        packed.type(ScalarType::Byte).same_device(x).shape({rows, in_features / 2});
        if (reinterpret_cast<uintptr_t>(packed.data()) % 16 != 0) {
            packed.fail("16-byte aligned", "an address that is not");
        }
        scales.like(x).shape({packed.size(0), -1});
        const int64_t n_groups = scales.size(1), group_size = in_features / n_groups;
        const bool allowed = n_groups == 1 || group_size == 32 || group_size == 64 ||
                             (group_size > 0 && group_size % 128 == 0);
        if (n_groups * group_size != in_features || !allowed) {
            scales.fail("of groups of 32, 64, a multiple of 128 or all of " + std::to_string(in_features) +
                            " columns",
                        std::to_string(n_groups) + " groups");
        }
        if (zeros) zeros->type(ScalarType::Byte).same_device(x).shape({packed.size(0), n_groups});
        if (perm) perm->type(ScalarType::Int).same_device(x).shape({in_features});
    }

    int64_t rows() const { return packed.size(0); }

    Int4WeightParams params() const {
        return {packed.values<uint8_t>(), scales.data(), zeros ? zeros->values<uint8_t>() : nullptr,
                perm ? perm->values<int32_t>() : nullptr, scales.size32(1)};
    }

    Argument packed, scales;
    OptionalArgument zeros, perm;
};

void int4_gemv(const Tensor& x_, const Tensor& packed_, const Tensor& scales_, const MaybeTensor& zeros_,
               const MaybeTensor& perm_, const MaybeTensor& bias_, const MaybeTensor& residual_,
               const Tensor& out_, MaybeTensor workspace_, double scale, double softcap) {
    const char* op = "int4_gemv";
    Argument x(op, "x", x_), out(op, "out", out_);
    const Int4Argument weight(op, {"packed", "scales", "zeros", "perm"}, packed_, scales_, zeros_, perm_);
    OptionalArgument bias(op, "bias", bias_), residual(op, "residual", residual_);
    const Dtype dtype = x.shape({-1, -1}).dtype();
    check_batch(x);
    weight.check(x, -1);
    if (bias) bias->like(x).shape({weight.rows()});
    if (residual) residual->like(x).shape({x.size(0), weight.rows()});
    out.like(x).shape({x.size(0), weight.rows()});
    check_finite(op, "scale", scale);
    check_softcap(op, softcap);
    Int4GemvParams params{x.data(),
                          weight.params(),
                          bias.data(),
                          residual.data(),
                          out.data(),
                          nullptr,
                          x.size32(0),
                          x.size32(1),
                          weight.packed.size32(0),
                          dtype,
                          static_cast<float>(scale),
                          static_cast<float>(softcap)};
    const size_t bytes = x_.is_cpu() ? cpu::int4_gemv_workspace_bytes(params) : 0;
    const Workspace workspace(op, workspace_, bytes, x);
    params.workspace = workspace.data();
    submit(params,
           {&x, &weight.packed, &weight.scales, weight.zeros.get(), weight.perm.get(), bias.get(),
            residual.get()},
           {&out}, workspace.argument());
}

PYKERNELS_TORCH_OP(
    int4_gemv,
    "(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, Tensor? "
    "residual, Tensor(a!) out, Tensor(b!)? workspace, float scale=1.0, float softcap=0.0) -> ()")

void int4_swiglu_gemv(const Tensor& x_, const Tensor& gate_packed_, const Tensor& gate_scales_,
                      const MaybeTensor& gate_zeros_, const MaybeTensor& gate_perm_, const Tensor& up_packed_,
                      const Tensor& up_scales_, const MaybeTensor& up_zeros_, const MaybeTensor& up_perm_,
                      const MaybeTensor& norm_weight_, double eps, const Tensor& out_, MaybeTensor workspace_,
                      double norm_offset, bool gelu) {
    const char* op = "int4_swiglu_gemv";
    Argument x(op, "x", x_), out(op, "out", out_);
    const Int4Argument gate(op, {"gate_packed", "gate_scales", "gate_zeros", "gate_perm"}, gate_packed_,
                            gate_scales_, gate_zeros_, gate_perm_);
    const Int4Argument up(op, {"up_packed", "up_scales", "up_zeros", "up_perm"}, up_packed_, up_scales_,
                          up_zeros_, up_perm_);
    OptionalArgument norm_weight(op, "norm_weight", norm_weight_);
    const Dtype dtype = x.shape({-1, -1}).dtype();
    check_batch(x);
    gate.check(x, -1);
    up.check(x, gate.rows());
    if (norm_weight) norm_weight->like(x).shape({x.size(1)});
    out.like(x).shape({x.size(0), gate.rows()});
    check_eps(op, eps);
    check_finite(op, "norm_offset", norm_offset);
    Int4SwigluGemvParams params{x.data(),
                                norm_weight.data(),
                                gate.params(),
                                up.params(),
                                out.data(),
                                nullptr,
                                x.size32(0),
                                x.size32(1),
                                gate.packed.size32(0),
                                static_cast<float>(eps),
                                dtype,
                                static_cast<float>(norm_offset),
                                gelu ? Activation::gelu_tanh : Activation::silu};
    const size_t bytes = x_.is_cpu() ? cpu::int4_swiglu_gemv_workspace_bytes(params) : 0;
    const Workspace workspace(op, workspace_, bytes, x);
    params.workspace = workspace.data();
    submit(params,
           {&x, &gate.packed, &gate.scales, gate.zeros.get(), gate.perm.get(), &up.packed, &up.scales,
            up.zeros.get(), up.perm.get(), norm_weight.get()},
           {&out}, workspace.argument());
}

PYKERNELS_TORCH_OP(
    int4_swiglu_gemv,
    "(Tensor x, Tensor gate_packed, Tensor gate_scales, Tensor? gate_zeros, Tensor? gate_perm, "
    "Tensor up_packed, Tensor up_scales, Tensor? up_zeros, Tensor? up_perm, Tensor? norm_weight, "
    "float eps, Tensor(a!) out, Tensor(b!)? workspace, float norm_offset=0.0, bool gelu=False) -> ()")

void int4_qkv_gemv(const Tensor& x_, const MaybeTensor& norm_weight_, double eps, const Tensor& q_packed_,
                   const Tensor& q_scales_, const MaybeTensor& q_zeros_, const MaybeTensor& q_perm_,
                   const Tensor& k_packed_, const Tensor& k_scales_, const MaybeTensor& k_zeros_,
                   const MaybeTensor& k_perm_, const Tensor& v_packed_, const Tensor& v_scales_,
                   const MaybeTensor& v_zeros_, const MaybeTensor& v_perm_, const MaybeTensor& q_bias_,
                   const MaybeTensor& k_bias_, const MaybeTensor& v_bias_, const Tensor& cos_sin_,
                   const Tensor& position_, const Tensor& k_cache_, const Tensor& v_cache_,
                   const Tensor& out_, MaybeTensor workspace_, const MaybeTensor& q_norm_,
                   const MaybeTensor& k_norm_, double norm_offset) {
    const char* op = "int4_qkv_gemv";
    const QkvArguments shared(op, x_, norm_weight_, q_bias_, k_bias_, v_bias_, cos_sin_, position_, k_cache_,
                              v_cache_, out_, q_norm_, k_norm_, norm_offset);
    const Int4Argument q(op, {"q_packed", "q_scales", "q_zeros", "q_perm"}, q_packed_, q_scales_, q_zeros_,
                         q_perm_);
    const Int4Argument k(op, {"k_packed", "k_scales", "k_zeros", "k_perm"}, k_packed_, k_scales_, k_zeros_,
                         k_perm_);
    const Int4Argument v(op, {"v_packed", "v_scales", "v_zeros", "v_perm"}, v_packed_, v_scales_, v_zeros_,
                         v_perm_);
    const Dtype dtype = shared.check_input();
    q.check(shared.x, -1);
    shared.check(q.packed, eps);
    k.check(shared.x, shared.kv_rows());
    v.check(shared.x, shared.kv_rows());
    Int4QkvGemvParams params{};
    shared.fill(params, eps, dtype);
    params.q = q.params();
    params.k = k.params();
    params.v = v.params();
    const size_t bytes =
        x_.is_cpu() ? cpu::int4_qkv_gemv_workspace_bytes(params) : static_cast<size_t>(qk_norm_bytes(params));
    const Workspace workspace(op, workspace_, bytes, shared.x);
    params.workspace = workspace.data();
    const RopeArguments& rope = shared.rope;
    submit(params, {&shared.x,           shared.norm_weight.get(),
                    &q.packed,           &q.scales,
                    q.zeros.get(),       q.perm.get(),
                    &k.packed,           &k.scales,
                    k.zeros.get(),       k.perm.get(),
                    &v.packed,           &v.scales,
                    v.zeros.get(),       v.perm.get(),
                    shared.q_bias.get(), shared.k_bias.get(),
                    shared.v_bias.get(), &rope.cos_sin,
                    &rope.position,      shared.q_norm.get(),
                    shared.k_norm.get()},
           {&shared.out, &rope.k_cache, &rope.v_cache}, workspace.argument());
}

PYKERNELS_TORCH_OP(
    int4_qkv_gemv,
    "(Tensor x, Tensor? norm_weight, float eps, Tensor q_packed, Tensor q_scales, Tensor? q_zeros, "
    "Tensor? q_perm, Tensor k_packed, Tensor k_scales, Tensor? k_zeros, Tensor? k_perm, Tensor "
    "v_packed, Tensor v_scales, Tensor? v_zeros, Tensor? v_perm, Tensor? q_bias, Tensor? k_bias, "
    "Tensor? v_bias, Tensor cos_sin, Tensor position, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor(c!) out, Tensor(d!)? workspace, Tensor? q_norm=None, Tensor? k_norm=None, "
    "float norm_offset=0.0) -> ()")

}  // namespace
}  // namespace pykernels::binding
