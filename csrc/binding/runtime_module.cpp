// pykernels._runtime: programs, the timed loops and the kernel library's settings, for Python. No torch here:
// programs are filled by the torch ops (torch_library.cpp), which share libpykernels with this module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "binding/timed_arrays.h"
#include "runtime/program.h"
#include "runtime/timed_loop.h"
#include "timestamps.h"

namespace py = pybind11;

namespace pykernels {

void bind_cuda_trace(py::module_& module);  // cuda_trace_module.cpp
#ifdef PYKERNELS_CUDA
void bind_relaunch(py::module_& module);  // relaunch_module.cpp
#endif
void bind_due_clock(py::module_& module);  // due_clock_module.cpp

namespace {

using ProgramPointer = std::shared_ptr<Program>;

// Mode `pybind`: one call from Python straight to one launcher.
struct Launch {
    ProgramPointer program;
    size_t index;
    void* stream;
    void operator()() const { launch(program->op(index), {program->cuda_device(), stream, false}); }
};

std::vector<const Program*> rotation(const std::vector<ProgramPointer>& programs) {
    if (programs.empty()) throw std::invalid_argument("programs must hold at least one program, got none");
    std::vector<const Program*> pointers;
    for (const auto& program : programs) {
        if (program->size() == 0)
            throw std::invalid_argument("programs must not be empty, got one without ops");
        if (program->cuda_device() != programs[0]->cuda_device())
            throw std::invalid_argument("programs must all be of one device");
        pointers.push_back(program.get());
    }
    return pointers;
}

// The host's clock tells nothing of a device.
void check_on_cpu(const std::vector<ProgramPointer>& programs) {
    if (programs[0]->cuda_device() >= 0)
        throw std::invalid_argument("programs must be of CPU ops: this loop reads the host's clock");
}

py::array_t<double> timed_loop_array(const std::vector<ProgramPointer>& programs, int64_t warmup,
                                     int64_t steps, int64_t repeats) {
    check_counts(warmup, steps, repeats);
    const auto pointers = rotation(programs);
    check_on_cpu(programs);
    py::array_t<double> samples_us(steps);
    double* data = samples_us.mutable_data();
    py::gil_scoped_release release;
    timed_loop(pointers, warmup, steps, repeats, data);
    return samples_us;
}

py::array_t<double> timed_ops_array(const std::vector<ProgramPointer>& programs, int64_t warmup,
                                    int64_t steps) {
    check_counts(warmup, steps, 1);
    const auto pointers = rotation(programs);
    check_on_cpu(programs);
    const size_t n_ops = pointers[0]->size();
    for (const Program* program : pointers) {
        if (program->size() != n_ops)
            throw std::invalid_argument("programs must all have the same number of ops");
    }
    py::array_t<double> samples_us({static_cast<size_t>(steps), n_ops});
    double* data = samples_us.mutable_data();
    py::gil_scoped_release release;
    timed_ops(pointers, warmup, steps, data);
    return samples_us;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(cpu::Isa::avx512_bf16); ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (cpu::isa_supported(isa)) names.emplace_back(cpu::isa_name(isa));
    }
    return names;
}

void set_isa_by_name(const std::string& name) {
    for (int i = 0; i <= static_cast<int>(cpu::Isa::avx512_bf16); ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (name == cpu::isa_name(isa)) return cpu::set_isa(isa);
    }
    std::string allowed;
    for (const auto& supported : supported_isas()) allowed += (allowed.empty() ? "" : ", ") + supported;
    throw std::invalid_argument("isa must be one of " + allowed + ", got " + name);
}

#ifdef PYKERNELS_CUDA
class ProgramStep : public CudaStep {
  public:
    ProgramStep(const Program* program, bool programmatic) : program_(program), programmatic_(programmatic) {}
    void enqueue(void* stream) const override { program_->run(stream, programmatic_); }
    size_t launches() const override { return program_->size(); }

  private:
    const Program* program_;
    bool programmatic_;
};

class GraphStep : public CudaStep {
  public:
    explicit GraphStep(const CudaGraph* graph) : graph_(graph) {}
    void enqueue(void* stream) const override { graph_->replay(stream); }
    // A queue takes a graph as the kernels it holds.
    size_t launches() const override { return graph_->kernels(); }

  private:
    const CudaGraph* graph_;
};

py::array_t<double> cuda_timed_programs(const std::vector<ProgramPointer>& programs, uintptr_t stream,
                                        int64_t warmup, int64_t count, int64_t repeats, bool programmatic,
                                        bool host) {
    std::vector<ProgramStep> steps;
    for (const Program* program : rotation(programs)) steps.emplace_back(program, programmatic);
    return time_on_cuda(steps, programs[0]->cuda_device(), stream, warmup, count, repeats, host);
}

py::array_t<double> cuda_timed_graphs(const std::vector<std::shared_ptr<CudaGraph>>& graphs, uintptr_t stream,
                                      int64_t warmup, int64_t count, int64_t repeats, bool host) {
    if (graphs.empty()) throw std::invalid_argument("graphs must hold at least one graph, got none");
    std::vector<GraphStep> steps;
    for (const auto& graph : graphs) steps.emplace_back(graph.get());
    return time_on_cuda(steps, graphs[0]->cuda_device(), stream, warmup, count, repeats, host);
}
#endif

py::dict build_info() {
    py::dict info;
#ifdef PYKERNELS_CUDA
    info["cuda"] = true;
    info["cuda_architectures"] = PYKERNELS_CUDA_ARCHITECTURES;
#else
    info["cuda"] = false;
    info["cuda_architectures"] = "";
#endif
#ifdef PYKERNELS_NVTX
    info["nvtx"] = true;
#else
    info["nvtx"] = false;
#endif
#ifdef PYKERNELS_TIMESTAMPS
    info["timestamps"] = true;
#else
    info["timestamps"] = false;
#endif
    info["compiler"] = PYKERNELS_COMPILER;
    info["build_type"] = PYKERNELS_BUILD_TYPE;
    return info;
}

}  // namespace
}  // namespace pykernels

PYBIND11_MODULE(_runtime, module) {
    using namespace pykernels;

    bind_cuda_trace(module);
    bind_due_clock(module);

    py::class_<Launch>(module, "Launch").def("__call__", &Launch::operator());

    py::class_<Program, ProgramPointer>(module, "Program")
        .def(py::init<>())
        .def(
            "run",
            [](const Program& program, uintptr_t stream, bool programmatic) {
                program.run(stream_of(stream), programmatic);
            },
            py::arg("stream") = 0, py::arg("programmatic") = false, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("cuda_device", &Program::cuda_device)
        .def("__len__", &Program::size)
        .def_property_readonly("ops",
                               [](const Program& program) {
                                   std::vector<std::string> names;
                                   for (size_t i = 0; i < program.size(); ++i)
                                       names.emplace_back(op_name(program.op(i)));
                                   return names;
                               })
        .def(
            "launchers",
            [](const ProgramPointer& program, uintptr_t stream) {
                std::vector<Launch> launchers;
                for (size_t i = 0; i < program->size(); ++i)
                    launchers.push_back({program, i, stream_of(stream)});
                return launchers;
            },
            py::arg("stream") = 0);

    module.def(
        "set_recording", [](Program* program) { set_recording(program); }, py::arg("program").none(true));
    module.def("is_recording", [] { return recording() != nullptr; });
    module.def("timed_loop", &timed_loop_array, py::arg("programs"), py::arg("warmup"), py::arg("steps"),
               py::arg("repeats"));
    module.def("timed_ops", &timed_ops_array, py::arg("programs"), py::arg("warmup"), py::arg("steps"));
    module.def("set_launches_enabled", &set_launches_enabled, py::arg("enabled"));

#ifdef PYKERNELS_CUDA
    py::class_<CudaGraph, std::shared_ptr<CudaGraph>>(module, "CudaGraph")
        .def(py::init([](const std::vector<ProgramPointer>& programs, bool programmatic) {
                 return std::make_shared<CudaGraph>(
                     std::vector<std::shared_ptr<const Program>>(programs.begin(), programs.end()),
                     programmatic);
             }),
             py::arg("programs"), py::arg("programmatic") = false, py::call_guard<py::gil_scoped_release>())
        .def(
            "replay", [](const CudaGraph& graph, uintptr_t stream) { graph.replay(stream_of(stream)); },
            py::arg("stream") = 0)
        .def_property_readonly("kernels", &CudaGraph::kernels);
    py::class_<StreamHold>(module, "StreamHold")
        .def(py::init([](int device, uintptr_t stream) {
                 return std::make_unique<StreamHold>(device, stream_of(stream));
             }),
             py::arg("device"), py::arg("stream"))
        .def("hold", &StreamHold::hold)
        .def("release", &StreamHold::release, py::call_guard<py::gil_scoped_release>());
    module.def("cuda_timed_programs", &cuda_timed_programs, py::arg("programs"), py::arg("stream"),
               py::arg("warmup"), py::arg("steps"), py::arg("repeats"), py::arg("programmatic"),
               py::arg("host"));
    module.def("cuda_timed_graphs", &cuda_timed_graphs, py::arg("graphs"), py::arg("stream"),
               py::arg("warmup"), py::arg("steps"), py::arg("repeats"), py::arg("host"));
    bind_relaunch(module);
#endif

#ifdef PYKERNELS_TIMESTAMPS
    module.def("start_timestamps", &cuda::start_timestamps, py::arg("device"), py::arg("capacity"),
               py::call_guard<py::gil_scoped_release>());
    module.def("stop_timestamps", [] {
        cuda::Timestamped timestamped;
        {
            const py::gil_scoped_release release;
            timestamped = cuda::stop_timestamps();
        }
        const auto* bytes = reinterpret_cast<const char*>(timestamped.records.data());
        return py::make_tuple(py::bytes(bytes, timestamped.records.size() * sizeof(cuda::StampRecord)),
                              timestamped.lost, cuda::timestamped_kernels());
    });
#endif

    module.def("num_threads", &cpu::num_threads);
    module.def("set_num_threads", &cpu::set_num_threads, py::arg("count"));
    module.def("isa", [] { return cpu::isa_name(cpu::current_isa()); });
    module.def("set_isa", &set_isa_by_name, py::arg("name"));
    module.def("supported_isas", &supported_isas);
    module.def("build_info", &build_info);
    module.def("op_names", &op_names);

    module.def("gqa_decode_workspace_bytes", [](int batch, int n_heads, int n_kv_heads, int head_dim,
                                                int max_len, int element_bytes, bool on_cuda) {
        GqaDecodeParams params{};
        params.batch = batch;
        params.n_heads = n_heads;
        params.n_kv_heads = n_kv_heads;
        params.head_dim = head_dim;
        params.max_len = max_len;
        params.dtype = element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
#ifdef PYKERNELS_CUDA
        if (on_cuda) return cuda::gqa_decode_workspace_bytes(params);
#endif
        (void)on_cuda;
        return cpu::gqa_decode_workspace_bytes(params);
    });
    module.def("swiglu_gemv_workspace_bytes",
               [](int batch, int in_features, bool has_norm, int element_bytes) {
                   SwigluGemvParams params{};
                   params.batch = batch;
                   params.in_features = in_features;
                   params.norm_weight = has_norm ? &params : nullptr;  // only whether it is null counts
                   params.dtype = element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
                   return cpu::swiglu_gemv_workspace_bytes(params);
               });
    module.def("qkv_gemv_workspace_bytes", [](int batch, int hidden, int element_bytes) {
        QkvGemvParams params{};
        params.batch = batch;
        params.hidden = hidden;
        params.dtype = element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
        return cpu::qkv_gemv_workspace_bytes(params);
    });
    module.def("int4_gemv_workspace_bytes", [](int batch, int in_features, int n_groups) {
        Int4GemvParams params{};
        params.batch = batch;
        params.in_features = in_features;
        params.weight.n_groups = n_groups;
        return cpu::int4_gemv_workspace_bytes(params);
    });
    module.def("int4_swiglu_gemv_workspace_bytes",
               [](int batch, int in_features, int gate_groups, int up_groups, int element_bytes) {
                   Int4SwigluGemvParams params{};
                   params.batch = batch;
                   params.in_features = in_features;
                   params.gate.n_groups = gate_groups;
                   params.up.n_groups = up_groups;
                   params.dtype = element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
                   return cpu::int4_swiglu_gemv_workspace_bytes(params);
               });
    module.def("int4_qkv_gemv_workspace_bytes",
               [](int batch, int hidden, int q_groups, int k_groups, int v_groups, int element_bytes) {
                   Int4QkvGemvParams params{};
                   params.batch = batch;
                   params.hidden = hidden;
                   params.q.n_groups = q_groups;
                   params.k.n_groups = k_groups;
                   params.v.n_groups = v_groups;
                   params.dtype = element_bytes == 4 ? Dtype::float32 : Dtype::bfloat16;
                   return cpu::int4_qkv_gemv_workspace_bytes(params);
               });
}
