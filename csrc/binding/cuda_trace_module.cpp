// pykernels._runtime's part for traces of the device; pykernels/trace.py makes it usable.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "runtime/cupti_trace.h"

namespace py = pybind11;

namespace pykernels {

void bind_cuda_trace(py::module_& module) {
    // Field by field, in the order of the dataclasses of pykernels/trace.py.
    py::class_<CudaTrace>(module, "CudaTrace")
        .def(py::init<const std::vector<std::string>&>(), py::arg("libraries"))
        .def("start", &CudaTrace::start, py::call_guard<py::gil_scoped_release>())
        .def("stop", [](CudaTrace& trace) {
            Trace records;
            {
                const py::gil_scoped_release release;
                records = trace.stop();
            }
            py::list kernels, calls;
            for (const TracedKernel& kernel : records.kernels) {
                kernels.append(py::make_tuple(
                    kernel.name, kernel.start_ns, kernel.end_ns, kernel.device, kernel.stream,
                    kernel.correlation, kernel.graph_node_id,
                    py::make_tuple(kernel.grid[0], kernel.grid[1], kernel.grid[2]),
                    py::make_tuple(kernel.block[0], kernel.block[1], kernel.block[2]), kernel.registers,
                    kernel.static_shared_bytes, kernel.dynamic_shared_bytes));
            }
            for (const TracedCall& call : records.calls) {
                calls.append(py::make_tuple(call.name, call.start_ns, call.end_ns, call.correlation,
                                            call.thread, call.is_driver));
            }
            return std::make_pair(kernels, calls);
        });
    module.def("cuda_trace_reason", &cuda_trace_reason, py::arg("libraries"), py::arg("attach"),
               py::call_guard<py::gil_scoped_release>());
}

}  // namespace pykernels
