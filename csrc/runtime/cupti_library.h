// libcupti, loaded at run time: the functions the trace calls, and its failures in words.
#pragma once

#ifdef PYKERNELS_CUPTI

#include <cupti.h>

#include <cstdint>
#include <string>
#include <vector>

namespace pykernels {

#define PYKERNELS_CUPTI_FUNCTIONS(entry)   \
    entry(cuptiGetVersion);                \
    entry(cuptiGetResultString);           \
    entry(cuptiGetCallbackName);           \
    entry(cuptiGetThreadIdType);           \
    entry(cuptiSetThreadIdType);           \
    entry(cuptiActivityRegisterCallbacks); \
    entry(cuptiActivityEnable);            \
    entry(cuptiActivityDisable);           \
    entry(cuptiActivityFlushAll);          \
    entry(cuptiActivityGetNextRecord);     \
    entry(cuptiActivityGetNumDroppedRecords)

// A libcupti in the process. It is never unloaded: its threads and hooks outlive a trace.
struct Cupti {
#define PYKERNELS_CUPTI_MEMBER(function) decltype(&::function) function = nullptr
    PYKERNELS_CUPTI_FUNCTIONS(PYKERNELS_CUPTI_MEMBER);
#undef PYKERNELS_CUPTI_MEMBER
    std::string path;
    uint32_t version = 0;

    // Throws std::runtime_error, naming the call, CUPTI's word for the result and the library.
    void check(CUptiResult status, const std::string& call) const;
};

// The first of the names and paths that is in the process already; else the first that can be loaded. Throws
// std::runtime_error with the loader's word on each.
const Cupti* load_cupti(const std::vector<std::string>& libraries);

}  // namespace pykernels

#endif
