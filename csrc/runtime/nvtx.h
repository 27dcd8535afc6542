// NVTX ranges in the domain "launchtax". With no tool attached a range costs a load and a branch;
// where the headers were not found at build time (PYKERNELS_NVTX undefined) it compiles to nothing.
#pragma once

#ifdef PYKERNELS_NVTX

#include <nvtx3/nvToolsExt.h>

namespace pykernels::nvtx {

inline nvtxDomainHandle_t domain() {
    static const nvtxDomainHandle_t handle = nvtxDomainCreateA("launchtax");
    return handle;
}

// `name` must be a string literal: NVTX keeps no copy until the push.
class Range {
  public:
    explicit Range(const char* name) {
        nvtxEventAttributes_t attributes = {};
        attributes.version = NVTX_VERSION;
        attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
        attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
        attributes.message.ascii = name;
        nvtxDomainRangePushEx(domain(), &attributes);
    }
    ~Range() { nvtxDomainRangePop(domain()); }
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;
};

}  // namespace pykernels::nvtx

#else

namespace pykernels::nvtx {

class Range {
  public:
    explicit Range(const char*) {}
};

}  // namespace pykernels::nvtx

#endif
