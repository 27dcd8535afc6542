// pykernels._runtime's part for workspaces: how many bytes an op takes, by its sizes. pykernels/workspaces.py
// asks.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops.h"

namespace py = pybind11;

namespace pykernels {
namespace {

// Throws std::invalid_argument for sizes that no op takes: the plans divide by them.
void check_sizes(const char* op, std::initializer_list<std::pair<const char*, int64_t>> sizes) {
    for (const auto& [name, value] : sizes) {
        const int64_t most = std::string(name) == "batch" ? max_batch : max_size;
        if (value < 1 || value > most) {
            throw std::invalid_argument(std::string("pykernels::") + op + "_workspace: " + name +
                                        " must be in 1.." + std::to_string(most) + ", got " +
                                        std::to_string(value));
        }
    }
}

Dtype dtype_of(int64_t element_bytes) {
    return element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
}

int32_t narrow(int64_t size) {
    return static_cast<int32_t>(size);
}

size_t gqa_decode(int64_t batch, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, int64_t max_len,
                  int64_t element_bytes, bool on_cuda, bool unified) {
    check_sizes("gqa_decode", {{"batch", batch},
                               {"n_heads", n_heads},
                               {"n_kv_heads", n_kv_heads},
                               {"head_dim", head_dim},
                               {"max_len", max_len}});
    if (n_heads % n_kv_heads != 0) {
        throw std::invalid_argument(
            "pykernels::gqa_decode_workspace: n_heads must be a multiple of n_kv_heads (" +
            std::to_string(n_kv_heads) + "), got " + std::to_string(n_heads));
    }
    GqaDecodeParams params{};
    params.batch = narrow(batch);
    params.n_heads = narrow(n_heads);
    params.n_kv_heads = narrow(n_kv_heads);
    params.head_dim = narrow(head_dim);
    params.max_len = narrow(max_len);
    params.dtype = dtype_of(element_bytes);
    params.softmax = unified ? Softmax::unified : Softmax::online;
#ifdef PYKERNELS_CUDA
    if (on_cuda) {  // one workspace serves launches with and without a soft cap, whose plans differ
        const size_t plain = cuda::gqa_decode_workspace_bytes(params);
        params.softcap = 1;
        return std::max(plain, cuda::gqa_decode_workspace_bytes(params));
    }
#endif
    (void)on_cuda;
    return cpu::gqa_decode_workspace_bytes(params);
}

size_t swiglu_gemv(int64_t batch, int64_t in_features, bool has_norm, int64_t element_bytes) {
    check_sizes("swiglu_gemv", {{"batch", batch}, {"in_features", in_features}});
    SwigluGemvParams params{};
    params.batch = narrow(batch);
    params.in_features = narrow(in_features);
    params.norm_weight = has_norm ? &params : nullptr;  // only whether it is null counts
    params.dtype = dtype_of(element_bytes);
    return cpu::swiglu_gemv_workspace_bytes(params);
}

// The sizes that a QK norm's part of the workspace depends on.
template <class Params>
void set_qk_norm(const char* op, Params& params, bool qk_norm, int64_t n_heads, int64_t n_kv_heads,
                 int64_t head_dim) {
    if (!qk_norm) return;
    check_sizes(op, {{"n_heads", n_heads}, {"n_kv_heads", n_kv_heads}, {"head_dim", head_dim}});
    params.n_heads = narrow(n_heads);
    params.n_kv_heads = narrow(n_kv_heads);
    params.head_dim = narrow(head_dim);
    params.q_norm = &params;  // only whether it is null counts
}

size_t qkv_gemv(int64_t batch, int64_t hidden, int64_t element_bytes, bool on_cuda, bool qk_norm,
                int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
    check_sizes("qkv_gemv", {{"batch", batch}, {"hidden", hidden}});
    QkvGemvParams params{};
    params.batch = narrow(batch);
    params.hidden = narrow(hidden);
    params.dtype = dtype_of(element_bytes);
    set_qk_norm("qkv_gemv", params, qk_norm, n_heads, n_kv_heads, head_dim);
    return on_cuda ? static_cast<size_t>(qk_norm_bytes(params)) : cpu::qkv_gemv_workspace_bytes(params);
}

size_t int4_gemv(int64_t batch, int64_t in_features, int64_t n_groups) {
    check_sizes("int4_gemv", {{"batch", batch}, {"in_features", in_features}, {"n_groups", n_groups}});
    Int4GemvParams params{};
    params.batch = narrow(batch);
    params.in_features = narrow(in_features);
    params.weight.n_groups = narrow(n_groups);
    return cpu::int4_gemv_workspace_bytes(params);
}

size_t int4_swiglu_gemv(int64_t batch, int64_t in_features, int64_t gate_groups, int64_t up_groups,
                        int64_t element_bytes) {
    check_sizes("int4_swiglu_gemv", {{"batch", batch},
                                     {"in_features", in_features},
                                     {"n_groups of gate", gate_groups},
                                     {"n_groups of up", up_groups}});
    Int4SwigluGemvParams params{};
    params.batch = narrow(batch);
    params.in_features = narrow(in_features);
    params.gate.n_groups = narrow(gate_groups);
    params.up.n_groups = narrow(up_groups);
    params.dtype = dtype_of(element_bytes);
    return cpu::int4_swiglu_gemv_workspace_bytes(params);
}

size_t int4_qkv_gemv(int64_t batch, int64_t hidden, int64_t q_groups, int64_t k_groups, int64_t v_groups,
                     int64_t element_bytes, bool on_cuda, bool qk_norm, int64_t n_heads, int64_t n_kv_heads,
                     int64_t head_dim) {
    check_sizes("int4_qkv_gemv", {{"batch", batch},
                                  {"hidden", hidden},
                                  {"n_groups of q", q_groups},
                                  {"n_groups of k", k_groups},
                                  {"n_groups of v", v_groups}});
    Int4QkvGemvParams params{};
    params.batch = narrow(batch);
    params.hidden = narrow(hidden);
    params.q.n_groups = narrow(q_groups);
    params.k.n_groups = narrow(k_groups);
    params.v.n_groups = narrow(v_groups);
    params.dtype = dtype_of(element_bytes);
    set_qk_norm("int4_qkv_gemv", params, qk_norm, n_heads, n_kv_heads, head_dim);
    return on_cuda ? static_cast<size_t>(qk_norm_bytes(params)) : cpu::int4_qkv_gemv_workspace_bytes(params);
}

}  // namespace

void bind_workspaces(py::module_& module) {
    module.def("gqa_decode_workspace_bytes", &gqa_decode);
    module.def("swiglu_gemv_workspace_bytes", &swiglu_gemv);
    module.def("qkv_gemv_workspace_bytes", &qkv_gemv);
    module.def("int4_gemv_workspace_bytes", &int4_gemv);
    module.def("int4_swiglu_gemv_workspace_bytes", &int4_swiglu_gemv);
    module.def("int4_qkv_gemv_workspace_bytes", &int4_qkv_gemv);
}

}  // namespace pykernels
