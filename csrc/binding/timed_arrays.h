// What the modules of pykernels._runtime share: samples as arrays, their counts checked, streams as integers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/interrupt.h"
#ifdef PYKERNELS_CUDA
#include "runtime/cuda_timing.h"
#endif

namespace pykernels {

namespace py = pybind11;

inline void* stream_of(uintptr_t handle) {
    return reinterpret_cast<void*>(handle);
}

inline void check_counts(int64_t warmup, int64_t steps, int64_t repeats) {
    const auto check = [](const char* name, int64_t value, int64_t low) {
        if (value < low) {
            throw std::invalid_argument(std::string(name) + " must be at least " + std::to_string(low) +
                                        ", got " + std::to_string(value));
        }
    };
    check("warmup", warmup, 0);
    check("steps", steps, 1);
    check("repeats", repeats, 1);
}

// None among programs or graphs.
template <class Pointer>
void check_given(const std::vector<Pointer>& given, const char* what) {
    if (given.empty()) {
        throw std::invalid_argument(std::string(what) + "s must hold at least one " + what + ", got none");
    }
    for (size_t i = 0; i < given.size(); ++i) {
        if (!given[i]) {
            throw std::invalid_argument(std::string(what) + "s[" + std::to_string(i) + "] must be a " + what +
                                        ", got None");
        }
    }
}

// Raises what a signal's handler raised while a loop ran, if anything (runtime_module.cpp).
void raise_interrupt();

// Runs a timed loop without the GIL; Ctrl-C ends it.
template <class Loop>
void run_interruptibly(Loop&& loop) {
    try {
        const py::gil_scoped_release release;
        loop();
    } catch (const Interrupted&) {
        raise_interrupt();
        throw;
    }
}

#ifdef PYKERNELS_CUDA
template <class Step>
py::array_t<double> time_on_cuda(const std::vector<Step>& steps, int device, uintptr_t stream, int64_t warmup,
                                 int64_t count, int64_t repeats, bool host) {
    check_counts(warmup, count, repeats);
    if (device < 0) throw std::invalid_argument("programs must be of CUDA ops: this loop reads CUDA events");
    std::vector<const CudaStep*> pointers;
    for (const Step& step : steps) pointers.push_back(&step);
    py::array_t<double> samples_us(count);
    double* data = samples_us.mutable_data();
    run_interruptibly([&] {
        if (host) {
            cuda_host_steps(device, stream_of(stream), pointers, warmup, count, data);
        } else {
            cuda_timed_steps(device, stream_of(stream), pointers, warmup, count, repeats, data);
        }
    });
    return samples_us;
}
#endif

}  // namespace pykernels
