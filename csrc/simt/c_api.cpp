// The executor for Python's ctypes (tests/inputs/simt.py). Functions that can fail return 0, or 1 with the
// reason in pykernels_simt_error().
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "ops.h"
#include "plan_table.h"
#include "simt/executor.h"
#include "timestamps.h"

using namespace pykernels;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::string error;

template <class Body>
int guarded(Body&& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& exception) {
        error = exception.what();
        return 1;
    }
}

}  // namespace

EXPORT const char* pykernels_simt_error() {
    return error.c_str();
}

EXPORT int pykernels_simt_configure(uint64_t seed, int sm_count, int shared_bytes, int arch) {
    return guarded([&] { simt::executor().configure({seed, sm_count, shared_bytes, arch}); });
}

EXPORT void* pykernels_simt_allocate(size_t bytes, size_t offset) {
    return simt::executor().memory.allocate(bytes, offset);
}

EXPORT int pykernels_simt_release(void* begin) {
    return guarded([&] { simt::executor().memory.release(begin); });
}

EXPORT int pykernels_simt_synchronize() {
    return guarded([] { simt::executor().synchronize(); });
}

EXPORT size_t pykernels_simt_gqa_decode_workspace_bytes(const GqaDecodeParams* params) {
    return cuda::gqa_decode_workspace_bytes(*params);
}

// pykernels_simt_rmsnorm(params, programmatic) and so on; pykernels_simt_rmsnorm_params_bytes() is the size
// of the struct. Weak, because the build with timestamps has the kernels of a few ops only.
#define PYKERNELS_ENTRIES(op, Params)                                                                \
    namespace pykernels::cuda {                                                                      \
    __attribute__((weak, visibility("hidden"))) void op(const Params& params, const Stream& stream); \
    }                                                                                                \
    EXPORT int pykernels_simt_##op(const Params* params, int programmatic) {                         \
        return guarded([&] {                                                                         \
            if (&cuda::op == nullptr) throw std::runtime_error(#op " is not in this build");         \
            cuda::op(*params, {nullptr, programmatic != 0});                                         \
        });                                                                                          \
    }                                                                                                \
    EXPORT size_t pykernels_simt_##op##_params_bytes() {                                             \
        return sizeof(Params);                                                                       \
    }
PYKERNELS_OPS(PYKERNELS_ENTRIES)

// pykernels_simt_choose_gemv(params, choice) and so on: the launch plan of an op of these sizes until the
// next call; choice: a PlanKernel's number, then plan_fields. Null clears it.
#define PYKERNELS_CHOOSE(op, Params)                                                          \
    EXPORT int pykernels_simt_choose_##op(const Params* params, const int32_t* choice) {      \
        return guarded([&] {                                                                  \
            auto table = std::make_unique<PlanTable>();                                       \
            table->name = "the test's plans";                                                 \
            table->card = "SIMT executor";                                                    \
            PlanEntry entry = {plan_key(*params, true), {}};                                  \
            entry.choice.kernel = static_cast<PlanKernel>(*choice);                           \
            for (const PlanField& field : plan_fields) entry.choice.*field.value = *++choice; \
            table->entries.push_back(entry);                                                  \
            set_plan_table(std::move(table));                                                 \
        });                                                                                   \
    }
PYKERNELS_PLANNED(PYKERNELS_CHOOSE)

EXPORT void pykernels_simt_clear_plans() {
    set_plan_table(nullptr);
}

#ifdef PYKERNELS_TIMESTAMPS
// In-kernel timestamps: the records are those of pykernels/timestamps.py's RECORD.
namespace {
cuda::Timestamped timestamped;
std::string timestamped_kernels;
}  // namespace

EXPORT int pykernels_simt_start_timestamps(uint32_t capacity) {
    return guarded([&] { cuda::start_timestamps(0, capacity); });
}

EXPORT int pykernels_simt_stop_timestamps(const void** records, uint64_t* count, uint64_t* lost) {
    return guarded([&] {
        timestamped = cuda::stop_timestamps();
        *records = timestamped.records.data();
        *count = timestamped.records.size();
        *lost = timestamped.lost;
    });
}

// Their ops, separated by spaces.
EXPORT const char* pykernels_simt_timestamped_kernels() {
    timestamped_kernels.clear();
    for (const std::string& op : cuda::timestamped_kernels()) timestamped_kernels += op + " ";
    return timestamped_kernels.c_str();
}
#endif
