#include "runtime/cupti_library.h"

#ifdef PYKERNELS_CUPTI

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace pykernels {
namespace {

constexpr uint32_t oldest_version = 19;  // CUDA 12.0

const char* advice(CUptiResult status) {
    switch (status) {
        case CUPTI_ERROR_INSUFFICIENT_PRIVILEGES:
        case CUPTI_ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES:
            return " (the driver lets only administrators profile here)";
        case CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED:
            return " (another profiler is attached: nsys, ncu, cuda-gdb or one in this process)";
        default:
            return "";
    }
}

std::unique_ptr<Cupti> bound(void* handle, const std::string& name) {
    auto cupti = std::make_unique<Cupti>();
    cupti->path = name;
    const auto find = [&](const char* function) {
        void* address = dlsym(handle, function);
        if (address == nullptr) throw std::runtime_error(name + " has no " + function);
        return address;
    };
#define PYKERNELS_CUPTI_FIND(function) \
    cupti->function = reinterpret_cast<decltype(cupti->function)>(find(#function))
    PYKERNELS_CUPTI_FUNCTIONS(PYKERNELS_CUPTI_FIND);
#undef PYKERNELS_CUPTI_FIND
    Dl_info info = {};
    if (dladdr(reinterpret_cast<void*>(cupti->cuptiGetVersion), &info) != 0 && info.dli_fname != nullptr) {
        cupti->path = info.dli_fname;
    }
    cupti->check(cupti->cuptiGetVersion(&cupti->version), "cuptiGetVersion");
    if (cupti->version < oldest_version) {
        throw std::runtime_error(cupti->path + " must be CUPTI version " + std::to_string(oldest_version) +
                                 " (CUDA 12.0) or later, got version " + std::to_string(cupti->version));
    }
    return cupti;
}

const Cupti* bound_once(void* handle, const std::string& name) {
    static std::mutex mutex;
    static auto* const libraries = new std::map<void*, std::unique_ptr<Cupti>>;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = libraries->find(handle);
    if (found != libraries->end()) return found->second.get();
    return libraries->emplace(handle, bound(handle, name)).first->second.get();
}

}  // namespace

void Cupti::check(CUptiResult status, const std::string& call) const {
    if (status == CUPTI_SUCCESS) return;
    const char* text = nullptr;
    if (cuptiGetResultString(status, &text) != CUPTI_SUCCESS || text == nullptr) text = "unknown result";
    throw std::runtime_error(call + " failed: " + text + advice(status) + "; " + path + ", version " +
                             std::to_string(version));
}

const Cupti* load_cupti(const std::vector<std::string>& libraries) {
    // torch's profiler may have one in the process; a second would find the driver taken.
    for (const std::string& name : libraries) {
        if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD)) return bound_once(handle, name);
    }
    std::string tried;
    for (const std::string& name : libraries) {
        if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return bound_once(handle, name);
        const char* text = dlerror();
        tried += (tried.empty() ? "" : "; ") + (text == nullptr ? name : std::string(text));
    }
    throw std::runtime_error("libcupti could not be loaded: " +
                             (tried.empty() ? "no name was given" : tried));
}

}  // namespace pykernels

#endif
