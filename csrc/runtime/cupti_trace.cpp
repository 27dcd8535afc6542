#include "runtime/cupti_trace.h"

#include <stdexcept>

#ifdef PYKERNELS_CUPTI

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "cuda/common/launch.h"
#include "runtime/cupti_library.h"
#include "runtime/cupti_records.h"
#include "runtime/demangled.h"

namespace pykernels {
namespace {

// Graphs are traced kernel by kernel as long as GRAPH_TRACE is not among them.
constexpr struct {
    CUpti_ActivityKind kind;
    const char* name;
} kinds[] = {
    {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, "CONCURRENT_KERNEL"},
    {CUPTI_ACTIVITY_KIND_MEMCPY, "MEMCPY"},
    {CUPTI_ACTIVITY_KIND_MEMSET, "MEMSET"},
    {CUPTI_ACTIVITY_KIND_RUNTIME, "RUNTIME"},
    {CUPTI_ACTIVITY_KIND_DRIVER, "DRIVER"},
};

// A launch takes about 300 bytes with its calls: one buffer holds some ten thousand. CUPTI asks for one a
// thread and more when it fills them.
constexpr size_t buffer_bytes = size_t{4} << 20;
constexpr size_t buffers_ahead = 8;

template <class Record>
void move_to_end(std::vector<Record>& to, std::vector<Record>& from) {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

// CUPTI's callbacks carry no pointer of ours: buffers and records are the process's. Never destroyed, since
// CUPTI hands buffers back at exit too. The lock is not held while CUPTI is called: CUPTI may hold its own
// when it calls back.
class Collector {
  public:
    static Collector& instance() {
        static auto* const collector = new Collector;
        return *collector;
    }

    // Claims the one trace that a process can have, and allocates its buffers.
    void begin(const Cupti* cupti) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (cupti_ != nullptr) {
            throw std::runtime_error("a CUDA trace is running already in this process; only one can");
        }
        while (free_.size() < buffers_ahead) free_.push_back(new_buffer());
        records_ = {};
        problem_.clear();
        cupti_ = cupti;
    }

    void end() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        cupti_ = nullptr;
    }

    Trace take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!problem_.empty()) throw std::runtime_error("the CUDA trace is not complete: " + problem_);
        return std::exchange(records_, {});
    }

    static void CUPTIAPI requested(uint8_t** buffer, size_t* size, size_t* max_records) {
        *buffer = instance().give();
        *size = *buffer == nullptr ? 0 : buffer_bytes;
        *max_records = 0;  // as many as fit
    }

    static void CUPTIAPI completed(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
        if (buffer != nullptr) instance().receive(Buffer(buffer), valid_bytes);
    }

  private:
    using Buffer = std::unique_ptr<uint8_t[]>;

    static Buffer new_buffer() {
        return std::make_unique<uint8_t[]>(buffer_bytes);
    }  // zeroed, so that no page fault comes later

    uint8_t* give() noexcept {
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (free_.empty()) return new_buffer().release();
            uint8_t* buffer = free_.back().release();
            free_.pop_back();
            return buffer;
        } catch (const std::bad_alloc&) {
            return nullptr;  // CUPTI drops records, and counts them
        }
    }

    const Cupti* running() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return cupti_;
    }

    void receive(Buffer buffer, size_t valid_bytes) noexcept {
        Trace trace;
        std::string problem;
        try {
            if (const Cupti* cupti = running()) trace = read_records(*cupti, buffer.get(), valid_bytes);
        } catch (const std::exception& error) {
            problem = error.what();
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        try {
            move_to_end(records_.kernels, trace.kernels);
            move_to_end(records_.calls, trace.calls);
            if (!problem.empty()) problem_ = problem;
            free_.push_back(std::move(buffer));
        } catch (const std::bad_alloc&) {
            problem_ = "out of memory";  // short enough to need none
        }
    }

    std::mutex mutex_;
    std::vector<Buffer> free_;
    const Cupti* cupti_ = nullptr;  // whose records are being collected; null: none are
    Trace records_;
    std::string problem_;  // why the trace is not complete
};

// The count begins anew with every call.
size_t dropped_records(const Cupti& cupti) {
    size_t dropped = 0;
    cupti.check(cupti.cuptiActivityGetNumDroppedRecords(nullptr, 0, &dropped),
                "cuptiActivityGetNumDroppedRecords");
    return dropped;
}

void wait_for_device() {
    const cudaError_t status = cudaDeviceSynchronize();
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return;  // nothing to wait for
    }
    cuda::check(status, "cudaDeviceSynchronize()", __FILE__, __LINE__);
}

}  // namespace

CudaTrace::CudaTrace(const std::vector<std::string>& libraries) : cupti_(load_cupti(libraries)) {}

CudaTrace::~CudaTrace() {
    if (running_) finish();
}

void CudaTrace::start() {
    Collector::instance().begin(cupti_);
    running_ = true;
    try {
        wait_for_device();
        CUpti_ActivityThreadIdType type = CUPTI_ACTIVITY_THREAD_ID_TYPE_DEFAULT;
        cupti_->check(cupti_->cuptiGetThreadIdType(&type), "cuptiGetThreadIdType");
        thread_id_type_ = type;
        cupti_->check(cupti_->cuptiActivityRegisterCallbacks(Collector::requested, Collector::completed),
                      "cuptiActivityRegisterCallbacks");
        cupti_->check(cupti_->cuptiSetThreadIdType(CUPTI_ACTIVITY_THREAD_ID_TYPE_SYSTEM),
                      "cuptiSetThreadIdType");
        dropped_records(*cupti_);  // those before this trace
        for (const auto& [kind, name] : kinds) {
            cupti_->check(cupti_->cuptiActivityEnable(kind),
                          std::string("cuptiActivityEnable(") + name + ")");
            ++enabled_;
        }
    } catch (...) {
        finish();
        throw;
    }
}

Trace CudaTrace::stop() {
    if (!running_) throw std::runtime_error("no CUDA trace is running: start() comes before stop()");
    Trace trace;
    try {
        wait_for_device();
        cupti_->check(cupti_->cuptiActivityFlushAll(0), "cuptiActivityFlushAll");
        while (enabled_ > 0) {
            const auto& [kind, name] = kinds[--enabled_];
            cupti_->check(cupti_->cuptiActivityDisable(kind),
                          std::string("cuptiActivityDisable(") + name + ")");
        }
        // What is left, the buffers of other threads among it.
        cupti_->check(cupti_->cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED),
                      "cuptiActivityFlushAll");
        trace = Collector::instance().take();
        if (const size_t dropped = dropped_records(*cupti_); dropped > 0) {
            throw std::runtime_error("the CUDA trace is not complete: CUPTI dropped " +
                                     std::to_string(dropped) + " records; trace fewer steps at a time");
        }
    } catch (...) {
        finish();
        throw;
    }
    finish();
    std::unordered_map<std::string, std::string> names;
    for (TracedKernel& kernel : trace.kernels) {
        std::string& name = names[kernel.name];
        if (name.empty()) name = demangled(kernel.name);
        kernel.name = name;
    }
    const auto earlier = [](const auto& a, const auto& b) { return a.start_ns < b.start_ns; };
    std::stable_sort(trace.kernels.begin(), trace.kernels.end(), earlier);
    std::stable_sort(trace.calls.begin(), trace.calls.end(), earlier);
    return trace;
}

// Nothing is to be done about a failure here: there is one on its way already, or no trace.
void CudaTrace::finish() noexcept {
    while (enabled_ > 0) cupti_->cuptiActivityDisable(kinds[--enabled_].kind);
    cupti_->cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    cupti_->cuptiSetThreadIdType(static_cast<CUpti_ActivityThreadIdType>(thread_id_type_));
    Collector::instance().end();
    running_ = false;
}

}  // namespace pykernels

#else

namespace pykernels {

CudaTrace::CudaTrace(const std::vector<std::string>&) {
#ifdef PYKERNELS_CUDA
    throw std::runtime_error("CUPTI's headers (cupti.h) were not found when this was built");
#else
    throw std::runtime_error("this build has no CUDA kernels");
#endif
}

// No object is ever made.
CudaTrace::~CudaTrace() = default;
void CudaTrace::start() {}
Trace CudaTrace::stop() {
    return {};
}

}  // namespace pykernels

#endif

namespace pykernels {

std::string cuda_trace_reason(const std::vector<std::string>& libraries, bool attach) {
    try {
        CudaTrace trace(libraries);
        if (attach) {
            trace.start();
            trace.stop();
        }
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

}  // namespace pykernels
