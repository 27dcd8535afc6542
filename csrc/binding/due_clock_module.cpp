// The due clock for Python.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "runtime/due_clock.h"

namespace py = pybind11;

namespace pykernels {
namespace {

constexpr int64_t signals_every_ns = 100'000'000;

int64_t wait_until_or_signal(int64_t due_ns, int64_t spin_ns) {
    for (;;) {
        int64_t now_ns;
        {
            py::gil_scoped_release release;
            now_ns = wait_until(due_ns, spin_ns, monotonic_ns() + signals_every_ns);
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (now_ns >= due_ns) return now_ns;
    }
}

}  // namespace

void bind_due_clock(py::module_& module) {
    module.def("monotonic_ns", &monotonic_ns);
    module.def("wait_until", &wait_until_or_signal, py::arg("due_ns"), py::arg("spin_ns"));
}

}  // namespace pykernels
