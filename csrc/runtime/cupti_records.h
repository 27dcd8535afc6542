// CUPTI's activity records, read out of a buffer.
#pragma once

#ifdef PYKERNELS_CUPTI

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/cupti_library.h"
#include "runtime/cupti_trace.h"

namespace pykernels {

// Kernels (their names as CUPTI has them, mangled) and calls, in the buffer's order. Throws
// std::runtime_error at a record that is not complete.
Trace read_records(const Cupti& cupti, uint8_t* buffer, size_t valid_bytes);

}  // namespace pykernels

#endif
