// pykernels._runtime's part for captured steps that are launched again; pykernels/relaunch.py makes it
// usable.
#include "runtime/relaunch.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "binding/timed_arrays.h"

namespace pykernels {
namespace {

using RelaunchPointer = std::shared_ptr<Relaunch>;

class NodeStep : public CudaStep {
  public:
    explicit NodeStep(const Relaunch* step) : step_(step) {}
    void enqueue(void* stream) const override { step_->run(stream); }
    size_t launches() const override { return step_->size(); }

  private:
    const Relaunch* step_;
};

py::array_t<double> cuda_timed_relaunches(const std::vector<RelaunchPointer>& relaunches, uintptr_t stream,
                                          int64_t warmup, int64_t count, int64_t repeats, bool host) {
    if (relaunches.empty()) throw std::invalid_argument("relaunches must hold at least one, got none");
    std::vector<NodeStep> steps;
    for (const auto& relaunch : relaunches) steps.emplace_back(relaunch.get());
    return time_on_cuda(steps, relaunches[0]->cuda_device(), stream, warmup, count, repeats, host);
}

}  // namespace

void bind_relaunch(py::module_& module) {
    py::class_<RelaunchNode>(module, "RelaunchNode")
        .def_readonly("kind", &RelaunchNode::kind)
        .def_readonly("name", &RelaunchNode::name)
        .def_property_readonly(
            "grid", [](const RelaunchNode& n) { return py::make_tuple(n.grid[0], n.grid[1], n.grid[2]); })
        .def_property_readonly(
            "block", [](const RelaunchNode& n) { return py::make_tuple(n.block[0], n.block[1], n.block[2]); })
        .def_readonly("shared_bytes", &RelaunchNode::shared_bytes)
        .def_readonly("bytes", &RelaunchNode::bytes)
        .def_readonly("attributes", &RelaunchNode::attributes);
    py::class_<Relaunch, RelaunchPointer>(module, "Relaunch")
        .def(py::init([](uintptr_t graph, int device, bool serialise,
                         const std::vector<std::string>& programmatic, const std::string& library) {
                 return std::make_shared<Relaunch>(reinterpret_cast<void*>(graph), device, serialise,
                                                   programmatic, library);
             }),
             py::arg("graph"), py::arg("device"), py::arg("serialise"), py::arg("programmatic"),
             py::arg("library"))
        .def(
            "run", [](const Relaunch& relaunch, uintptr_t stream) { relaunch.run(stream_of(stream)); },
            py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>())
        .def("__len__", &Relaunch::size)
        .def_property_readonly("nodes", &Relaunch::nodes)
        .def_property_readonly("branches", &Relaunch::branches);
    module.def("cuda_timed_relaunches", &cuda_timed_relaunches, py::arg("relaunches"), py::arg("stream"),
               py::arg("warmup"), py::arg("steps"), py::arg("repeats"), py::arg("host"));
}

}  // namespace pykernels
