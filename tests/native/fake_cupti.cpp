// A libcupti without a GPU, for tests/package/test_cupti.py: what csrc/runtime/cupti_*.cpp calls, by CUPTI's
// rules, over launches that the test makes up. Unkind where CUPTI may be: buffers are a thread's own, records
// end at buffers' ends, and the names of kernels are gone once their buffers are handed over.
#include <cupti.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#if CUPTI_API_VERSION >= 130000
using KernelRecord = CUpti_ActivityKernel10;
#else
using KernelRecord = CUpti_ActivityKernel9;
#endif

extern "C" {
// Set by the test.
int fake_version = CUPTI_API_VERSION;
int fake_failing_kind = 0;   // cuptiActivityEnable of it fails
int fake_failing_flush = 0;  // the next flush fails
int fake_result = CUPTI_ERROR_UNKNOWN;
int fake_buffers_left = -1;  // how many requests for a buffer are made; -1: as many as needed
// Read by the test.
int fake_enabled_kinds = 0;
int fake_thread_id_type = CUPTI_ACTIVITY_THREAD_ID_TYPE_DEFAULT;
int fake_buffers_out = 0;  // buffers that the trace gave and did not get back
}

namespace {

struct Buffer {
    uint8_t* bytes = nullptr;
    size_t size = 0;
    size_t used = 0;
    std::vector<std::unique_ptr<std::string>> names;
};

std::mutex mutex;  // held while the trace's callbacks run, as CUPTI may
std::map<long, Buffer> buffers;
bool enabled[CUPTI_ACTIVITY_KIND_COUNT];
size_t dropped = 0;
CUpti_BuffersCallbackRequestFunc request = nullptr;
CUpti_BuffersCallbackCompleteFunc complete = nullptr;

long thread() {
    return gettid();
}

void hand_over(Buffer& buffer) {
    if (buffer.bytes == nullptr) return;
    complete(nullptr, 0, buffer.bytes, buffer.size, buffer.used);
    --fake_buffers_out;
    for (const auto& name : buffer.names) name->assign(name->size(), '?');
    buffer = {};
}

size_t record_bytes(CUpti_ActivityKind kind) {
    switch (kind) {
        case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
            return sizeof(KernelRecord);
        case CUPTI_ACTIVITY_KIND_MEMSET:
            return sizeof(CUpti_ActivityMemset4);
        case CUPTI_ACTIVITY_KIND_RUNTIME:
        case CUPTI_ACTIVITY_KIND_DRIVER:
            return sizeof(CUpti_ActivityAPI);
        default:
            return 0;
    }
}

template <class Record>
void record(Record record, const char* name = nullptr) {
    if (!enabled[record.kind]) return;
    Buffer& buffer = buffers[thread()];
    if (buffer.bytes != nullptr && buffer.used + sizeof record > buffer.size) hand_over(buffer);
    if (buffer.bytes == nullptr && fake_buffers_left != 0) {
        size_t most = 0;
        request(&buffer.bytes, &buffer.size, &most);
        if (buffer.bytes != nullptr) ++fake_buffers_out;
        if (fake_buffers_left > 0) --fake_buffers_left;
    }
    if (buffer.bytes == nullptr) {
        ++dropped;
        return;
    }
    if constexpr (std::is_same_v<Record, KernelRecord>) {
        if (name != nullptr) {
            buffer.names.push_back(std::make_unique<std::string>(name));
            record.name = buffer.names.back()->c_str();
        }
    }
    std::memcpy(buffer.bytes + buffer.used, &record, sizeof record);
    buffer.used += sizeof record;
}

void record_call(CUpti_ActivityKind kind, CUpti_CallbackId id, uint64_t start_ns, uint64_t end_ns,
                 uint32_t correlation) {
    CUpti_ActivityAPI call = {};
    call.kind = kind;
    call.cbid = id;
    call.start = start_ns;
    call.end = end_ns;
    call.threadId = static_cast<uint32_t>(thread());
    call.correlationId = correlation;
    record(call);
}

CUptiResult reset(CUpti_ActivityKind kind, bool on) {
    if (kind <= 0 || kind >= CUPTI_ACTIVITY_KIND_COUNT) return CUPTI_ERROR_INVALID_KIND;
    fake_enabled_kinds += int{on} - int{enabled[kind]};
    enabled[kind] = on;
    return CUPTI_SUCCESS;
}

}  // namespace

extern "C" {

// A kernel of a runtime call around a driver call, both of which took 4 us; the kernel began 5 us after.
void fake_launch(const char* name, uint32_t correlation, uint64_t call_ns, uint64_t kernel_ns,
                 uint64_t graph_node) {
    const std::lock_guard<std::mutex> lock(mutex);
    record_call(CUPTI_ACTIVITY_KIND_DRIVER, 2, call_ns + 1000, call_ns + 3000, correlation);
    record_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1, call_ns, call_ns + 4000, correlation);
    KernelRecord kernel = {};
    kernel.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
    kernel.start = kernel_ns == 0 ? 0 : call_ns + 5000;
    kernel.end = kernel_ns == 0 ? 0 : call_ns + 5000 + kernel_ns;
    kernel.deviceId = 3;
    kernel.streamId = 7;
    kernel.gridX = 132, kernel.gridY = 2, kernel.gridZ = 1;
    kernel.blockX = 256, kernel.blockY = 1, kernel.blockZ = 4;
    kernel.registersPerThread = 40;
    kernel.staticSharedMemory = 1024;
    kernel.dynamicSharedMemory = 98304;
    kernel.correlationId = correlation;
    kernel.graphNodeId = graph_node;
    record(kernel, name);
}

void fake_fill(uint32_t correlation, uint64_t start_ns, uint64_t end_ns) {
    const std::lock_guard<std::mutex> lock(mutex);
    CUpti_ActivityMemset4 fill = {};
    fill.kind = CUPTI_ACTIVITY_KIND_MEMSET;
    fill.start = start_ns;
    fill.end = end_ns;
    fill.deviceId = 3;
    fill.streamId = 7;
    fill.correlationId = correlation;
    record(fill);
}

CUptiResult cuptiGetVersion(uint32_t* version) {
    *version = static_cast<uint32_t>(fake_version);
    return CUPTI_SUCCESS;
}

CUptiResult cuptiGetResultString(CUptiResult result, const char** text) {
    switch (result) {
        case CUPTI_ERROR_INSUFFICIENT_PRIVILEGES:
            *text = "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES";
            return CUPTI_SUCCESS;
        case CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED:
            *text = "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED";
            return CUPTI_SUCCESS;
        case CUPTI_ERROR_UNKNOWN:
            *text = "CUPTI_ERROR_UNKNOWN";
            return CUPTI_SUCCESS;
        default:
            return CUPTI_ERROR_INVALID_PARAMETER;
    }
}

CUptiResult cuptiGetCallbackName(CUpti_CallbackDomain domain, uint32_t id, const char** name) {
    if (domain == CUPTI_CB_DOMAIN_RUNTIME_API && id == 1) {
        *name = "cudaLaunchKernelExC_v11060";
        return CUPTI_SUCCESS;
    }
    return CUPTI_ERROR_INVALID_PARAMETER;  // the driver's are left without a name
}

CUptiResult cuptiGetThreadIdType(CUpti_ActivityThreadIdType* type) {
    *type = static_cast<CUpti_ActivityThreadIdType>(fake_thread_id_type);
    return CUPTI_SUCCESS;
}

CUptiResult cuptiSetThreadIdType(CUpti_ActivityThreadIdType type) {
    fake_thread_id_type = type;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc requested,
                                           CUpti_BuffersCallbackCompleteFunc completed) {
    if (requested == nullptr || completed == nullptr) return CUPTI_ERROR_INVALID_PARAMETER;
    request = requested;
    complete = completed;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityEnable(CUpti_ActivityKind kind) {
    if (kind == fake_failing_kind) return static_cast<CUptiResult>(fake_result);
    return reset(kind, true);
}

CUptiResult cuptiActivityDisable(CUpti_ActivityKind kind) {
    return reset(kind, false);
}

CUptiResult cuptiActivityFlushAll(uint32_t) {
    if (request == nullptr) return CUPTI_ERROR_INVALID_OPERATION;
    if (fake_failing_flush != 0) {
        fake_failing_flush = 0;
        return static_cast<CUptiResult>(fake_result);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto& [owner, buffer] : buffers) hand_over(buffer);
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityGetNextRecord(uint8_t* buffer, size_t valid_bytes, CUpti_Activity** record) {
    if (buffer == nullptr) return CUPTI_ERROR_INVALID_PARAMETER;
    size_t offset = 0;
    if (*record != nullptr) {
        offset =
            static_cast<size_t>(reinterpret_cast<uint8_t*>(*record) - buffer) + record_bytes((*record)->kind);
    }
    if (offset >= valid_bytes) return CUPTI_ERROR_MAX_LIMIT_REACHED;
    *record = reinterpret_cast<CUpti_Activity*>(buffer + offset);
    return record_bytes((*record)->kind) == 0 ? CUPTI_ERROR_INVALID_KIND : CUPTI_SUCCESS;
}

CUptiResult cuptiActivityGetNumDroppedRecords(CUcontext, uint32_t, size_t* count) {
    const std::lock_guard<std::mutex> lock(mutex);
    *count = dropped;
    dropped = 0;
    return CUPTI_SUCCESS;
}
}
