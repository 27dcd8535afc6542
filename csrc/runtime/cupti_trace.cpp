#include "runtime/cupti_trace.h"

#include <stdexcept>

#ifdef PYKERNELS_CUPTI

#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "cuda/common/launch.h"
#include "runtime/cupti_library.h"

namespace pykernels {
namespace {

// The newest records that the headers define. The library writes its own newest, which need not be the same:
// so only members are read that every version since CUDA 12.0 keeps at one offset.
#if CUPTI_API_VERSION >= 130200
using KernelRecord = CUpti_ActivityKernel11;
#elif CUPTI_API_VERSION >= 130000
using KernelRecord = CUpti_ActivityKernel10;
#else
using KernelRecord = CUpti_ActivityKernel9;
#endif
using CopyRecord = CUpti_ActivityMemcpy5;
using FillRecord = CUpti_ActivityMemset4;
using CallRecord = CUpti_ActivityAPI;

static_assert(CUPTI_API_VERSION >= 19, "CUPTI of CUDA 12.0 or later");
static_assert(offsetof(KernelRecord, registersPerThread) == 6 && offsetof(KernelRecord, start) == 16 &&
              offsetof(KernelRecord, deviceId) == 40 && offsetof(KernelRecord, streamId) == 48 &&
              offsetof(KernelRecord, gridX) == 52 && offsetof(KernelRecord, blockX) == 64 &&
              offsetof(KernelRecord, staticSharedMemory) == 76 &&
              offsetof(KernelRecord, correlationId) == 92 && offsetof(KernelRecord, name) == 104 &&
              offsetof(KernelRecord, graphNodeId) == 144);
static_assert(offsetof(CopyRecord, start) == 16 && offsetof(CopyRecord, deviceId) == 32 &&
              offsetof(CopyRecord, streamId) == 40 && offsetof(CopyRecord, correlationId) == 44 &&
              offsetof(CopyRecord, graphNodeId) == 64);
static_assert(offsetof(FillRecord, start) == 16 && offsetof(FillRecord, deviceId) == 32 &&
              offsetof(FillRecord, streamId) == 40 && offsetof(FillRecord, correlationId) == 44 &&
              offsetof(FillRecord, graphNodeId) == 64);

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

std::string demangled(const std::string& name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    if (text == nullptr) return name;  // extern "C"
    std::string result = text;
    std::free(text);
    return result;
}

std::string call_name(const Cupti& cupti, bool is_driver, CUpti_CallbackId id) {
    const char* name = nullptr;
    const auto domain = is_driver ? CUPTI_CB_DOMAIN_DRIVER_API : CUPTI_CB_DOMAIN_RUNTIME_API;
    if (cupti.cuptiGetCallbackName(domain, id, &name) == CUPTI_SUCCESS && name != nullptr) return name;
    return (is_driver ? "driver call " : "runtime call ") + std::to_string(id);
}

template <class Record>
TracedKernel& append_timed(Trace& trace, const Record& record, const char* name) {
    if (record.start == 0 || record.end < record.start) {
        throw std::runtime_error("CUPTI has no times of a record of " + demangled(name));
    }
    TracedKernel kernel = {};
    kernel.name = name;
    kernel.start_ns = record.start;
    kernel.end_ns = record.end;
    kernel.device = record.deviceId;
    kernel.stream = record.streamId;
    kernel.correlation = record.correlationId;
    kernel.graph_node_id = record.graphNodeId;
    return trace.kernels.emplace_back(std::move(kernel));
}

void append(Trace& trace, const Cupti& cupti, const CUpti_Activity& record) {
    switch (record.kind) {
        case CUPTI_ACTIVITY_KIND_KERNEL:
        case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
            const auto& kernel = reinterpret_cast<const KernelRecord&>(record);
            // The name is copied now: its memory is its module's, which may be unloaded before the trace
            // ends.
            TracedKernel& added = append_timed(trace, kernel, kernel.name == nullptr ? "" : kernel.name);
            added.grid = {kernel.gridX, kernel.gridY, kernel.gridZ};
            added.block = {kernel.blockX, kernel.blockY, kernel.blockZ};
            added.registers = kernel.registersPerThread;
            added.static_shared_bytes = kernel.staticSharedMemory;
            added.dynamic_shared_bytes = kernel.dynamicSharedMemory;
            break;
        }
        case CUPTI_ACTIVITY_KIND_MEMCPY:
            append_timed(trace, reinterpret_cast<const CopyRecord&>(record), "[memcpy]");
            break;
        case CUPTI_ACTIVITY_KIND_MEMSET:
            append_timed(trace, reinterpret_cast<const FillRecord&>(record), "[memset]");
            break;
        case CUPTI_ACTIVITY_KIND_RUNTIME:
        case CUPTI_ACTIVITY_KIND_DRIVER: {
            const auto& call = reinterpret_cast<const CallRecord&>(record);
            const bool is_driver = record.kind == CUPTI_ACTIVITY_KIND_DRIVER;
            trace.calls.push_back({call_name(cupti, is_driver, call.cbid), call.start, call.end,
                                   call.correlationId, call.threadId, is_driver});
            break;
        }
        default:
            break;  // kinds that someone else switched on
    }
}

Trace read(const Cupti& cupti, uint8_t* buffer, size_t valid_bytes) {
    Trace trace;
    CUpti_Activity* record = nullptr;
    while (true) {
        const CUptiResult status = cupti.cuptiActivityGetNextRecord(buffer, valid_bytes, &record);
        if (status == CUPTI_ERROR_MAX_LIMIT_REACHED) return trace;
        cupti.check(status, "cuptiActivityGetNextRecord");
        append(trace, cupti, *record);
    }
}

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

    // Takes the process's one place for a trace, and sees to the memory.
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
    }  // zeroed: its pages exist

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
            if (const Cupti* cupti = running()) trace = read(*cupti, buffer.get(), valid_bytes);
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
