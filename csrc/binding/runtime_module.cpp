// pykernels._runtime: programs, the timed loops and the kernel library's settings, for Python. No torch here:
// programs are filled by the torch ops (torch_library.cpp), which share libpykernels with this module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "binding/timed_arrays.h"
#include "cpu/isa_names.h"
#include "runtime/build_stamp.h"
#include "runtime/program.h"
#include "runtime/ranges.h"
#include "runtime/timed_loop.h"
#include "timestamps.h"

namespace py = pybind11;

namespace pykernels {

void bind_cuda_trace(py::module_& module);  // cuda_trace_module.cpp
#ifdef PYKERNELS_CUDA
void bind_graph_loop(py::module_& module);  // graph_loop_module.cpp
void bind_relaunch(py::module_& module);    // relaunch_module.cpp
#endif
void bind_due_clock(py::module_& module);   // due_clock_module.cpp
void bind_plans(py::module_& module);       // plans_module.cpp
void bind_workspaces(py::module_& module);  // workspaces_module.cpp

namespace {

// Ctrl-C in the loops, which run without the GIL. What a signal's handler raised waits here until the loop is
// left.
thread_local PyObject* raised[3] = {};

bool signal_raised() {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() == 0) return false;
    PyErr_Fetch(&raised[0], &raised[1], &raised[2]);
    return true;
}

}  // namespace

void raise_interrupt() {
    if (raised[0] == nullptr) return;
    PyErr_Restore(raised[0], raised[1], raised[2]);
    raised[0] = raised[1] = raised[2] = nullptr;
    throw py::error_already_set();
}

namespace {

using ProgramPointer = std::shared_ptr<Program>;

// Mode `pybind`: one call from Python straight to one launcher.
struct Launch {
    ProgramPointer program;
    size_t index;
    void* stream;
    bool programmatic;
    void operator()() const {
        program->check(index);
        launch(program->op(index), {program->cuda_device(), stream, programmatic});
    }
};

std::vector<const Program*> rotation(const std::vector<ProgramPointer>& programs) {
    check_given(programs, "program");
    std::vector<const Program*> pointers;
    for (const auto& program : programs) {
        program->check();
        if (program->size() == 0)
            throw std::invalid_argument("programs must not be empty, got one without ops");
        if (program->cuda_device() != programs[0]->cuda_device())
            throw std::invalid_argument("programs must all be of one device");
        pointers.push_back(program.get());
    }
    return pointers;
}

// The ops of a program that another thread is recording may move at any time.
void check_readable(const Program& program) {
    if (program.is_recording() && recording() != &program)
        throw std::runtime_error("the program is being recorded by another thread");
}

// On CUDA the host's clock would read the time of enqueuing alone.
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
    run_interruptibly([&] { timed_loop(pointers, warmup, steps, repeats, data); });
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
    run_interruptibly([&] { timed_ops(pointers, warmup, steps, data); });
    return samples_us;
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
    // A replay of any length can be held; those of long graphs are held one at a time.
    size_t launches() const override { return std::min(graph_->kernels(), max_held_launches); }

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
    check_given(graphs, "graph");
    for (const auto& graph : graphs) graph->check();
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
    const BuildStamp stamp = build_stamp();
    info["commit"] = *stamp.commit ? py::object(py::str(stamp.commit)) : py::object(py::none());
    info["dirty"] = stamp.dirty >= 0 ? py::object(py::bool_(stamp.dirty == 1)) : py::object(py::none());
    py::dict hashes;
    hashes["csrc"] = stamp.csrc_hash;
    hashes["pykernels"] = stamp.pykernels_hash;
    hashes["bench"] = stamp.bench_hash;
    info["source_hashes"] = hashes;
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
                program.check();
                program.run(stream_of(stream), programmatic);
            },
            py::arg("stream") = 0, py::arg("programmatic") = false, py::call_guard<py::gil_scoped_release>())
        .def("end_recording", &Program::end_recording)
        .def_property_readonly("cuda_device", &Program::cuda_device)
        .def("__len__", &Program::size)
        .def_property_readonly("ops",
                               [](const Program& program) {
                                   check_readable(program);
                                   std::vector<std::string> names;
                                   for (size_t i = 0; i < program.size(); ++i)
                                       names.emplace_back(op_name(program.op(i)));
                                   return names;
                               })
        .def(
            "launchers",
            [](const ProgramPointer& program, uintptr_t stream, bool programmatic) {
                check_readable(*program);
                std::vector<Launch> launchers;
                for (size_t i = 0; i < program->size(); ++i)
                    launchers.push_back({program, i, stream_of(stream), programmatic});
                return launchers;
            },
            py::arg("stream") = 0, py::arg("programmatic") = false);

    module.def("set_recording", &set_recording, py::arg("program").none(true));
    module.def("raise_interrupt", &raise_interrupt);
    set_interrupt_check(&signal_raised);
    module.def("set_range_checks", &set_range_checks, py::arg("enabled"));
    module.def("range_checks", &range_checks);
    module.def("is_recording", [] { return recording() != nullptr; });
    module.def("timed_loop", &timed_loop_array, py::arg("programs"), py::arg("warmup"), py::arg("steps"),
               py::arg("repeats"));
    module.def("timed_ops", &timed_ops_array, py::arg("programs"), py::arg("warmup"), py::arg("steps"));
    module.attr("max_held_launches") = max_held_launches;
    module.def("steps_per_hold", &steps_per_hold, py::arg("launches"));
    module.def("set_launches_enabled", &set_launches_enabled, py::arg("enabled"));

#ifdef PYKERNELS_CUDA
    py::class_<CudaGraph, std::shared_ptr<CudaGraph>>(module, "CudaGraph")
        .def(py::init([](const std::vector<ProgramPointer>& programs, bool programmatic) {
                 check_given(programs, "program");
                 return std::make_shared<CudaGraph>(
                     std::vector<std::shared_ptr<const Program>>(programs.begin(), programs.end()),
                     programmatic);
             }),
             py::arg("programs"), py::arg("programmatic") = false, py::call_guard<py::gil_scoped_release>())
        .def(
            "replay",
            [](const CudaGraph& graph, uintptr_t stream) {
                graph.check();
                graph.replay(stream_of(stream));
            },
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
    bind_graph_loop(module);
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
    module.def("isa", &cpu::current_isa_name);
    module.def("set_isa", &cpu::set_isa_by_name, py::arg("name"));
    module.def("supported_isas", &cpu::supported_isa_names);
    module.def("build_info", &build_info);
    module.def("op_names", &op_names);

    bind_plans(module);
    bind_workspaces(module);
}
