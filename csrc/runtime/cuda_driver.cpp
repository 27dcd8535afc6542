#include "runtime/cuda_driver.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

namespace pykernels {
namespace {

std::unique_ptr<CudaDriver> loaded(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* text = dlerror();
        throw std::runtime_error("the CUDA driver could not be loaded: " +
                                 std::string(text ? text : library));
    }
    auto driver = std::make_unique<CudaDriver>();
    const auto find = [&](const char* symbol) {
        void* address = dlsym(handle, symbol);
        if (address == nullptr) {
            throw std::runtime_error(library + " has no " + symbol +
                                     ": a relaunch needs a driver of CUDA 12.4 or later");
        }
        return address;
    };
#define PYKERNELS_DRIVER_FIND(member, symbol, arguments) \
    driver->member = reinterpret_cast<CUresult(*) arguments>(find(symbol))
    PYKERNELS_DRIVER_FUNCTIONS(PYKERNELS_DRIVER_FIND);
#undef PYKERNELS_DRIVER_FIND
    return driver;
}

}  // namespace

void CudaDriver::check(CUresult status, const char* call) const {
    if (status == CUDA_SUCCESS) return;
    const char *name = nullptr, *text = nullptr;
    if (get_error_name(status, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown result";
    if (get_error_string(status, &text) != CUDA_SUCCESS || text == nullptr) text = "no description";
    throw std::runtime_error(std::string(call) + " failed: " + name + " (" + std::to_string(status) + "), " +
                             text);
}

const CudaDriver& cuda_driver(const std::string& library) {
    static std::mutex mutex;
    static auto* const drivers = new std::map<std::string, std::unique_ptr<CudaDriver>>;
    const std::lock_guard<std::mutex> lock(mutex);
    auto& driver = (*drivers)[library];
    if (!driver) driver = loaded(library);
    return *driver;
}

}  // namespace pykernels
