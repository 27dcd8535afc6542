// A launch plan that a table chooses in place of the built-in heuristic: what the plan functions are given.
//
// The table is found by an op's sizes, batch, dtype and device, at every launch. Which choices there are, and
// what each plan function makes of one, is said beside the plan functions; plan_table.h sets the table.
#pragma once

#include <cstdint>

#include "params.h"

// The ops whose launch plan a table can choose.
#define PYKERNELS_PLANNED(X)                  \
    X(gemv, GemvParams)                       \
    X(gqa_decode, GqaDecodeParams)            \
    X(swiglu_gemv, SwigluGemvParams)          \
    X(qkv_gemv, QkvGemvParams)                \
    X(int4_gemv, Int4GemvParams)              \
    X(int4_swiglu_gemv, Int4SwigluGemvParams) \
    X(int4_qkv_gemv, Int4QkvGemvParams)

namespace pykernels {

// Which of an op's kernels. Of a GEMV: cuda_cores (gemv_mainloop.cuh) or tensor_cores (gemv_mma.cuh); of a
// 4-bit GEMV the fast or the general path; of gqa_decode K and V through registers, by bulk copies, or the
// kernel for any head_dim.
enum class PlanKernel : int32_t {
    built_in,
    cuda_cores,
    tensor_cores,
    fast,
    general,
    registers,
    bulk,
    any_dim
};

// 0 in each field: the built-in heuristic decides.
struct PlanChoice {
    PlanKernel kernel = PlanKernel::built_in;
    int32_t blocks = 0;     // of a GEMV's grid
    int32_t vectors = 0;    // cuda_cores: 16-byte vectors of a row that a thread copies per stage
    int32_t warps = 0;      // tensor_cores, fast, general: of a block
    int32_t row_tiles = 0;  // tensor_cores: of a stage
    int32_t splits = 0;     // gqa_decode: of the KV axis, combined through global memory
    int32_t cluster = 0;    // gqa_decode: blocks of a cluster, each a split
    int32_t rows = 0;       // CPU GEMVs: rows of a chunk, the work that a thread takes at once

    constexpr bool is_made() const {
        return kernel != PlanKernel::built_in || blocks || vectors || warps || row_tiles || splits ||
               cluster || rows;
    }
};

constexpr int plan_max_sizes = 6;

// What a choice is for. `sizes` are those that plan_size_names() names, 0 past them.
struct PlanKey {
    int32_t op;    // of PYKERNELS_PLANNED, by number
    int32_t cuda;  // 1: CUDA, 0: CPU
    Dtype dtype;
    int32_t batch;
    int32_t sizes[plan_max_sizes];
};

#define PYKERNELS_DECLARE(op, Params) PlanKey plan_key(const Params& params, bool cuda);
PYKERNELS_PLANNED(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

// The table's choice for a launch; one with zeros throughout where there is no table, or no such entry.
// Throws std::invalid_argument where the table is of another card, or on a CPU of another number of threads,
// or could not be read (plan_table.h).
PlanChoice planned_on_cpu(const PlanKey& key, int threads);
PlanChoice planned_on_cuda(const PlanKey& key, const char* (*card)());

// Throws std::invalid_argument: the plan function does not allow a choice of the table for that op. `why`
// says what it would need.
[[noreturn]] void refuse_plan(const PlanKey& key, const PlanChoice& choice, const char* why);

}  // namespace pykernels
