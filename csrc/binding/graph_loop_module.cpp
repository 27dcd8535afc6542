// pykernels._runtime's part for decoding loops in a graph; pykernels/graph_loop.py makes it usable.
#ifdef PYKERNELS_CUDA
#include "runtime/graph_loop.h"

#include <pybind11/pybind11.h>

#include <memory>

#include "binding/timed_arrays.h"

namespace pykernels {

void bind_graph_loop(py::module_& module) {
    // Addresses are integers, as streams are.
    const auto make = [](const std::shared_ptr<Program>& program, uintptr_t token, uintptr_t tokens,
                         uintptr_t end_ns, uintptr_t done, int32_t batch, int32_t steps) {
        const GraphLoopMemory memory{reinterpret_cast<const int64_t*>(token),
                                     reinterpret_cast<int64_t*>(tokens), reinterpret_cast<int64_t*>(end_ns),
                                     reinterpret_cast<int32_t*>(done)};
        return std::make_unique<GraphLoop>(program, memory, batch, steps);
    };
    py::class_<GraphLoop>(module, "GraphLoop")
        .def(py::init(make), py::arg("program"), py::arg("token"), py::arg("tokens"), py::arg("end_ns"),
             py::arg("done"), py::arg("batch"), py::arg("steps"), py::call_guard<py::gil_scoped_release>())
        .def(
            "run",
            [](const GraphLoop& loop, uintptr_t stream) {
                loop.check();
                loop.run(stream_of(stream));
            },
            py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("kernels", &GraphLoop::kernels);
    module.def("graph_loop_reason", py::overload_cast<>(&graph_loop_reason));
    module.def("graph_loop_reason", py::overload_cast<int>(&graph_loop_reason), py::arg("driver_version"));
}

}  // namespace pykernels

#endif
