// The torch op library `pykernels`, by torch's stable ABI: one schema an op, its checks, and the way to the
// launcher. Every op writes into `out` and returns nothing; pykernels/ops.py allocates `out` where a caller
// gives none, and registers the fakes for torch.compile.
//
// While the calling thread records a program (runtime/program.h), the checked parameters are appended to it
// and nothing is launched.
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "binding/op_arguments.h"
#include "binding/register_op.h"

namespace pykernels::binding {
namespace {

// Bytes of workspace on the device of `like`. Only gqa_decode and a QK norm need one, and only on CUDA.
size_t workspace_bytes(const GqaDecodeParams& params, const Argument& like) {
#ifdef PYKERNELS_CUDA
    if (!like.tensor().is_cpu()) return cuda::gqa_decode_workspace_bytes(params);
#endif
    (void)like;
    return cpu::gqa_decode_workspace_bytes(params);
}

size_t workspace_bytes(const SwigluGemvParams& params, const Argument& like) {
    return like.tensor().is_cpu() ? cpu::swiglu_gemv_workspace_bytes(params) : 0;
}

size_t workspace_bytes(const QkvGemvParams& params, const Argument& like) {
    return like.tensor().is_cpu() ? cpu::qkv_gemv_workspace_bytes(params)
                                  : static_cast<size_t>(qk_norm_bytes(params));
}

void rmsnorm(const Tensor& x_, const Tensor& weight_, double eps, const Tensor& out_,
             const MaybeTensor& residual_, double norm_offset) {
    Argument x("rmsnorm", "x", x_), weight("rmsnorm", "weight", weight_), out("rmsnorm", "out", out_);
    OptionalArgument residual("rmsnorm", "residual", residual_);
    const Dtype dtype = x.shape({-1, -1}).dtype();
    weight.like(x).shape({x.size(1)});
    out.like(x).shape_of(x);
    if (residual) residual->like(x).shape_of(x);
    check_eps("rmsnorm", eps);
    check_finite("rmsnorm", "norm_offset", norm_offset);
    submit(RmsnormParams{x.data(), weight.data(), out.data(), x.size32(0), x.size32(1),
                         static_cast<float>(eps), dtype, residual.data(), static_cast<float>(norm_offset)},
           {&x, &weight, residual.get()}, {&out});
}

PYKERNELS_TORCH_OP(rmsnorm,
                   "(Tensor x, Tensor weight, float eps, Tensor(a!) out, Tensor? residual=None, "
                   "float norm_offset=0.0) -> ()")

void gemv(const Tensor& x_, const Tensor& weight_, const MaybeTensor& bias_, const MaybeTensor& residual_,
          const Tensor& out_, double scale, double softcap) {
    Argument x("gemv", "x", x_), weight("gemv", "weight", weight_), out("gemv", "out", out_);
    OptionalArgument bias("gemv", "bias", bias_), residual("gemv", "residual", residual_);
    const Dtype dtype = x.shape({-1, -1}).dtype();
    check_batch(x);
    weight.like(x).shape({-1, x.size(1)});
    if (bias) bias->like(x).shape({weight.size(0)});
    if (residual) residual->like(x).shape({x.size(0), weight.size(0)});
    out.like(x).shape({x.size(0), weight.size(0)});
    check_finite("gemv", "scale", scale);
    check_softcap("gemv", softcap);
    submit(GemvParams{x.data(), weight.data(), bias.data(), residual.data(), out.data(), x.size32(0),
                      x.size32(1), weight.size32(0), dtype, static_cast<float>(scale),
                      static_cast<float>(softcap)},
           {&x, &weight, bias.get(), residual.get()}, {&out});
}

PYKERNELS_TORCH_OP(
    gemv,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) out, float scale=1.0, "
    "float softcap=0.0) -> ()")

void rope_kv_append(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& cos_sin_,
                    const Tensor& position_, const Tensor& k_cache_, const Tensor& v_cache_,
                    const Tensor& out_) {
    const char* op = "rope_kv_append";
    Argument q(op, "q", q_), k(op, "k", k_), v(op, "v", v_), out(op, "out", out_);
    const RopeArguments rope(op, cos_sin_, position_, k_cache_, v_cache_);
    const Dtype dtype = q.shape({-1, -1, -1}).dtype();
    check_batch(q);
    k.like(q).shape({q.size(0), -1, q.size(2)});
    v.like(q).shape_of(k);
    out.like(q).shape_of(q);
    check_heads(q, q.size(1), k.size(1), q.size(2));
    rope.check(q, k.size(1), q.size(2));
    submit(RopeKvAppendParams{q.data(), k.data(), v.data(), rope.cos_sin.values<float>(),
                              rope.position.values<int32_t>(), out.data(), rope.k_cache.data(),
                              rope.v_cache.data(), q.size32(0), q.size32(1), k.size32(1), q.size32(2),
                              rope.k_cache.size32(2), rope.cos_sin.size32(0), dtype},
           {&q, &k, &v, &rope.cos_sin, &rope.position}, {&out, &rope.k_cache, &rope.v_cache});
}

PYKERNELS_TORCH_OP(rope_kv_append,
                   "(Tensor q, Tensor k, Tensor v, Tensor cos_sin, Tensor position, Tensor(a!) k_cache, "
                   "Tensor(b!) v_cache, Tensor(c!) out) -> ()")

void gqa_decode(const Tensor& q_, const Tensor& k_cache_, const Tensor& v_cache_, const Tensor& kv_len_,
                double scale, const Tensor& out_, MaybeTensor workspace_, double softcap, bool unified,
                double phi) {
    const char* op = "gqa_decode";
    Argument q(op, "q", q_), k_cache(op, "k_cache", k_cache_), v_cache(op, "v_cache", v_cache_),
        kv_len(op, "kv_len", kv_len_), out(op, "out", out_);
    const Dtype dtype = q.shape({-1, -1, -1}).dtype();
    check_batch(q);
    k_cache.like(q).shape({q.size(0), -1, -1, q.size(2)});
    v_cache.like(q).shape_of(k_cache);
    kv_len.type(ScalarType::Int).same_device(q).shape({q.size(0)});
    out.like(q).shape_of(q);
    check_heads(q, q.size(1), k_cache.size(1), q.size(2));
    if (!(std::fabs(scale) < 1e38)) {  // kernels go on in float32, with scale * log2(e)
        fail(op, "scale must be in (-1e38, 1e38), got " + std::to_string(scale));
    }
    GqaDecodeParams params{q.data(),
                           k_cache.data(),
                           v_cache.data(),
                           kv_len.values<int32_t>(),
                           out.data(),
                           nullptr,
                           q.size32(0),
                           q.size32(1),
                           k_cache.size32(1),
                           q.size32(2),
                           k_cache.size32(2),
                           static_cast<float>(scale),
                           dtype,
                           static_cast<float>(phi),
                           0,
                           static_cast<float>(softcap),
                           unified ? Softmax::unified : Softmax::online};
    check_softcap(op, softcap);
    if (!(std::fabs(phi) <= 1e6)) fail(op, "phi must be in [-1e6, 1e6], got " + std::to_string(phi));
    if (!unified && phi != 0) {
        fail(op, "phi must be 0 where softmax is online, got " + std::to_string(phi));
    }
    if (unified && !q_.is_cpu()) {
        if (q.size(2) != 64 && q.size(2) != 128) {
            q.fail("of head_dim 64 or 128 on CUDA where softmax is unified",
                   "head_dim " + std::to_string(q.size(2)));
        }
        if (q.size(1) == k_cache.size(1)) {
            q.fail("of more heads than k_cache's " + std::to_string(k_cache.size(1)) +
                       " on CUDA where softmax is unified",
                   std::to_string(q.size(1)) + " heads");
        }
    }
    if (softcap != 0 && unified && !q_.is_cpu()) {
        fail(op, "softcap must be 0 on CUDA where softmax is unified, got " + std::to_string(softcap));
    }
    const Workspace workspace(op, workspace_, workspace_bytes(params, q), q);
    params.workspace = workspace.data();
    params.workspace_bytes = workspace.bytes();
    submit(params, {&q, &k_cache, &v_cache, &kv_len}, {&out}, workspace.argument());
}

PYKERNELS_TORCH_OP(gqa_decode,
                   "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor kv_len, float scale, Tensor(a!) out, "
                   "Tensor(b!)? workspace, float softcap=0.0, bool unified=False, float phi=0.0) -> ()")

void silu_mul(const Tensor& gate_, const Tensor& up_, const Tensor& out_, bool gelu) {
    Argument gate("silu_mul", "gate", gate_), up("silu_mul", "up", up_), out("silu_mul", "out", out_);
    const Dtype dtype = gate.shape({-1, -1}).dtype();
    check_batch(gate);
    up.like(gate).shape_of(gate);
    out.like(gate).shape_of(gate);
    submit(SiluMulParams{gate.data(), up.data(), out.data(), gate.size32(0), gate.size32(1), dtype,
                         gelu ? Activation::gelu_tanh : Activation::silu},
           {&gate, &up}, {&out});
}

PYKERNELS_TORCH_OP(silu_mul, "(Tensor gate, Tensor up, Tensor(a!) out, bool gelu=False) -> ()")

void swiglu_gemv(const Tensor& x_, const Tensor& gate_weight_, const Tensor& up_weight_,
                 const MaybeTensor& norm_weight_, double eps, const Tensor& out_, MaybeTensor workspace_,
                 double norm_offset, bool gelu) {
    const char* op = "swiglu_gemv";
    Argument x(op, "x", x_), gate_weight(op, "gate_weight", gate_weight_),
        up_weight(op, "up_weight", up_weight_), out(op, "out", out_);
    OptionalArgument norm_weight(op, "norm_weight", norm_weight_);
    const Dtype dtype = x.shape({-1, -1}).dtype();
    check_batch(x);
    gate_weight.like(x).shape({-1, x.size(1)});
    up_weight.like(x).shape_of(gate_weight);
    if (norm_weight) norm_weight->like(x).shape({x.size(1)});
    out.like(x).shape({x.size(0), gate_weight.size(0)});
    check_eps(op, eps);
    check_finite(op, "norm_offset", norm_offset);
    SwigluGemvParams params{x.data(),
                            norm_weight.data(),
                            gate_weight.data(),
                            up_weight.data(),
                            out.data(),
                            nullptr,
                            x.size32(0),
                            x.size32(1),
                            gate_weight.size32(0),
                            static_cast<float>(eps),
                            dtype,
                            static_cast<float>(norm_offset),
                            gelu ? Activation::gelu_tanh : Activation::silu};
    const Workspace workspace(op, workspace_, workspace_bytes(params, x), x);
    params.workspace = workspace.data();
    submit(params, {&x, &gate_weight, &up_weight, norm_weight.get()}, {&out}, workspace.argument());
}

PYKERNELS_TORCH_OP(
    swiglu_gemv,
    "(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor? norm_weight, float eps, Tensor(a!) "
    "out, Tensor(b!)? workspace, float norm_offset=0.0, bool gelu=False) -> ()")

void qkv_gemv(const Tensor& x_, const MaybeTensor& norm_weight_, double eps, const Tensor& q_weight_,
              const Tensor& k_weight_, const Tensor& v_weight_, const MaybeTensor& q_bias_,
              const MaybeTensor& k_bias_, const MaybeTensor& v_bias_, const Tensor& cos_sin_,
              const Tensor& position_, const Tensor& k_cache_, const Tensor& v_cache_, const Tensor& out_,
              MaybeTensor workspace_, const MaybeTensor& q_norm_, const MaybeTensor& k_norm_,
              double norm_offset) {
    const char* op = "qkv_gemv";
    const QkvArguments shared(op, x_, norm_weight_, q_bias_, k_bias_, v_bias_, cos_sin_, position_, k_cache_,
                              v_cache_, out_, q_norm_, k_norm_, norm_offset);
    const Argument q_weight(op, "q_weight", q_weight_), k_weight(op, "k_weight", k_weight_),
        v_weight(op, "v_weight", v_weight_);
    const Dtype dtype = shared.check_input();
    q_weight.like(shared.x).shape({-1, shared.hidden()});
    shared.check(q_weight, eps);
    k_weight.like(shared.x).shape({shared.kv_rows(), shared.hidden()});
    v_weight.like(shared.x).shape_of(k_weight);
    QkvGemvParams params{};
    shared.fill(params, eps, dtype);
    params.q_weight = q_weight.data();
    params.k_weight = k_weight.data();
    params.v_weight = v_weight.data();
    const Workspace workspace(op, workspace_, workspace_bytes(params, shared.x), shared.x);
    params.workspace = workspace.data();
    const RopeArguments& rope = shared.rope;
    submit(params,
           {&shared.x, shared.norm_weight.get(), &q_weight, &k_weight, &v_weight, shared.q_bias.get(),
            shared.k_bias.get(), shared.v_bias.get(), &rope.cos_sin, &rope.position, shared.q_norm.get(),
            shared.k_norm.get()},
           {&shared.out, &rope.k_cache, &rope.v_cache}, workspace.argument());
}

PYKERNELS_TORCH_OP(
    qkv_gemv,
    "(Tensor x, Tensor? norm_weight, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor cos_sin, Tensor position, Tensor(a!) "
    "k_cache, Tensor(b!) v_cache, Tensor(c!) out, Tensor(d!)? workspace, Tensor? q_norm=None, "
    "Tensor? k_norm=None, float norm_offset=0.0) -> ()")

void add(const Tensor& a_, const Tensor& b_, const Tensor& out_, double scale) {
    Argument a("add", "a", a_), b("add", "b", b_), out("add", "out", out_);
    const Dtype dtype = a.shape_of(a).dtype();
    b.like(a).shape_of(a);
    out.like(a).shape_of(a);
    check_finite("add", "scale", scale);
    submit(AddParams{a.data(), b.data(), out.data(), a.bytes() / dtype_bytes(dtype), dtype,
                     static_cast<float>(scale)},
           {&a, &b}, {&out});
}

PYKERNELS_TORCH_OP(add, "(Tensor a, Tensor b, Tensor(a!) out, float scale=1.0) -> ()")

void embedding(const Tensor& token_, const Tensor& table_, const Tensor& out_, double scale) {
    Argument token("embedding", "token", token_), table("embedding", "table", table_),
        out("embedding", "out", out_);
    const Dtype dtype = table.shape({-1, -1}).dtype();
    token.type(ScalarType::Long).same_device(table).shape({-1});
    check_batch(token);
    out.like(table).shape({token.size(0), table.size(1)});
    check_finite("embedding", "scale", scale);
    submit(EmbeddingParams{token.values<int64_t>(), table.data(), out.data(), token.size32(0),
                           table.size32(1), table.size32(0), dtype, static_cast<float>(scale)},
           {&token, &table}, {&out});
}

PYKERNELS_TORCH_OP(embedding, "(Tensor token, Tensor table, Tensor(a!) out, float scale=1.0) -> ()")

void argmax(const Tensor& logits_, const MaybeTensor& position_, const MaybeTensor& kv_len_, int64_t max_len,
            const Tensor& out_) {
    const char* op = "argmax";
    Argument logits(op, "logits", logits_), out(op, "out", out_);
    OptionalArgument position(op, "position", position_), kv_len(op, "kv_len", kv_len_);
    const Dtype dtype = logits.shape({-1, -1}).dtype();
    check_batch(logits);
    out.type(ScalarType::Long).same_device(logits).shape({logits.size(0)});
    if (bool(position) != bool(kv_len)) fail(op, "position and kv_len must be given together or not at all");
    if (position) {
        if (max_len < 1 || max_len > max_size) {
            fail(op,
                 "max_len must be in 1.." + std::to_string(max_size) + ", got " + std::to_string(max_len));
        }
        position->type(ScalarType::Int).same_device(logits).shape({logits.size(0)});
        kv_len->type(ScalarType::Int).same_device(logits).shape({logits.size(0)});
    }
    submit(ArgmaxParams{logits.data(), static_cast<int64_t*>(out.data()),
                        static_cast<int32_t*>(position.data()), static_cast<int32_t*>(kv_len.data()),
                        logits.size32(0), logits.size32(1), static_cast<int32_t>(max_len), dtype},
           {&logits}, {&out, position.get(), kv_len.get()});
}

PYKERNELS_TORCH_OP(
    argmax, "(Tensor logits, Tensor(a!)? position, Tensor(b!)? kv_len, int max_len, Tensor(c!) out) -> ()")

// The controls. `x` only names the device.

void null(const Tensor& x_) {
    const Argument x("null", "x", x_);
    submit(NullParams{}, {&x}, {});
}

PYKERNELS_TORCH_OP(null, "(Tensor x) -> ()")

void spin(const Tensor& x_, double duration_us) {
    if (!(duration_us >= 0 && duration_us <= 1e7)) {
        fail("spin", "duration_us must be in [0, 1e7], got " + std::to_string(duration_us));
    }
    const Argument x("spin", "x", x_);
    submit(SpinParams{duration_us}, {&x}, {});
}

PYKERNELS_TORCH_OP(spin, "(Tensor x, float duration_us) -> ()")

void check_stream(const Argument& stream) {
    stream.shape({-1}).type(ScalarType::Byte);
    if (stream.bytes() % 64 != 0 || reinterpret_cast<uintptr_t>(stream.data()) % 64 != 0) {
        stream.fail("64-byte aligned and a multiple of 64 bytes", std::to_string(stream.bytes()) + " bytes");
    }
}

void ceiling_read(const Tensor& src_, const Tensor& sink_) {
    Argument src("ceiling_read", "src", src_), sink("ceiling_read", "sink", sink_);
    check_stream(src);
    sink.type(ScalarType::Long).same_device(src).shape({8});
    submit(CeilingReadParams{src.data(), sink.data(), src.bytes()}, {&src}, {&sink});
}

PYKERNELS_TORCH_OP(ceiling_read, "(Tensor src, Tensor(a!) sink) -> ()")

void ceiling_copy(const Tensor& src_, const Tensor& out_) {
    Argument src("ceiling_copy", "src", src_), out("ceiling_copy", "out", out_);
    check_stream(src);
    check_stream(out);
    out.like(src).shape_of(src);
    submit(CeilingCopyParams{src.data(), out.data(), src.bytes()}, {&src}, {&out});
}

PYKERNELS_TORCH_OP(ceiling_copy, "(Tensor src, Tensor(a!) out) -> ()")

}  // namespace
}  // namespace pykernels::binding
