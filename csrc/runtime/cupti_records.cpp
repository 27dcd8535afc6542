#include "runtime/cupti_records.h"

#ifdef PYKERNELS_CUPTI

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/demangled.h"

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

}  // namespace

Trace read_records(const Cupti& cupti, uint8_t* buffer, size_t valid_bytes) {
    Trace trace;
    CUpti_Activity* record = nullptr;
    while (true) {
        const CUptiResult status = cupti.cuptiActivityGetNextRecord(buffer, valid_bytes, &record);
        if (status == CUPTI_ERROR_MAX_LIMIT_REACHED) return trace;
        cupti.check(status, "cuptiActivityGetNextRecord");
        append(trace, cupti, *record);
    }
}

}  // namespace pykernels

#endif
