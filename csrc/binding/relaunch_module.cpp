// pykernels._runtime's part for captured steps that are launched again; pykernels/relaunch.py makes it
// usable.
#ifdef PYKERNELS_CUDA
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "binding/timed_arrays.h"
#include "runtime/empty_launch.h"
#include "runtime/relaunch.h"

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

using EmptyPointer = std::shared_ptr<EmptyLaunch>;

class EmptyStep : public CudaStep {
  public:
    explicit EmptyStep(const EmptyLaunch* launch) : launch_(launch) {}
    void enqueue(void* stream) const override { launch_->run(stream); }
    size_t launches() const override { return 1; }

  private:
    const EmptyLaunch* launch_;
};

py::array_t<double> cuda_timed_empty(const EmptyPointer& launch, uintptr_t stream, int64_t warmup,
                                     int64_t count, int64_t repeats, bool host) {
    const std::vector<EmptyStep> steps{EmptyStep(launch.get())};
    return time_on_cuda(steps, launch->cuda_device(), stream, warmup, count, repeats, host);
}

py::array_t<double> cuda_timed_relaunches(const std::vector<RelaunchPointer>& relaunches, uintptr_t stream,
                                          int64_t warmup, int64_t count, int64_t repeats, bool host) {
    if (relaunches.empty()) throw std::invalid_argument("relaunches must hold at least one, got none");
    std::vector<NodeStep> steps;
    for (const auto& relaunch : relaunches) {
        if (!relaunch) throw std::invalid_argument("relaunches must hold no None");
        steps.emplace_back(relaunch.get());
    }
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
    py::class_<EmptyLaunch, EmptyPointer>(module, "EmptyLaunch")
        .def(py::init<const std::string&, int, bool, int, int>(), py::arg("call"), py::arg("arguments"),
             py::arg("programmatic") = false, py::arg("cluster_blocks") = 1, py::arg("device") = 0)
        .def("run", [](const EmptyLaunch& launch, uintptr_t stream) { launch.run(stream_of(stream)); })
        .def_property_readonly("function", &EmptyLaunch::function);
    module.def("cuda_timed_empty", &cuda_timed_empty, py::arg("launch"), py::arg("stream"), py::arg("warmup"),
               py::arg("steps"), py::arg("repeats"), py::arg("host"));
    module.def("cuda_timed_relaunches", &cuda_timed_relaunches, py::arg("relaunches"), py::arg("stream"),
               py::arg("warmup"), py::arg("steps"), py::arg("repeats"), py::arg("host"));
}

}  // namespace pykernels

#endif
