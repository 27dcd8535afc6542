// The table of launch plans of a process (plan_choice.h): set, cleared and read here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/common/resident_clusters.h"
#include "plan_choice.h"

namespace pykernels {

struct PlanEntry {
    PlanKey key;
    PlanChoice choice;
};

struct PlanTable {
    std::string name;  // in errors: the file
    std::string card;  // the CUDA device's name; "" in a table of a CPU
    int threads = 0;   // a CPU table's
    // Not empty: why the file cannot be used. Every launch that would look into the table throws it then.
    std::string refusal;
    std::vector<PlanEntry> entries;
};

// Null clears the table. It holds for every launch from then on, in all threads; a captured graph keeps the
// plans that it was captured with. Throws std::invalid_argument, which names the entry, where one has a
// kernel or field that its op does not have, a value out of range, or the key of another entry.
void set_plan_table(std::unique_ptr<PlanTable> table);
const PlanTable* plan_table();  // null: none. It stays valid for as long as the process runs

// The words for ops, sizes, kernels and fields, as files and errors have them.
std::vector<std::string> planned_ops();
std::vector<std::string> plan_size_names(int op);
const char* plan_kernel_name(PlanKernel kernel);
PlanKernel plan_kernel(const std::string& name);  // throws std::invalid_argument for an unknown name

struct PlanField {
    const char* name;
    int32_t PlanChoice::* value;
};
constexpr PlanField plan_fields[] = {
    {"blocks", &PlanChoice::blocks}, {"vectors", &PlanChoice::vectors},
    {"warps", &PlanChoice::warps},   {"row_tiles", &PlanChoice::row_tiles},
    {"splits", &PlanChoice::splits}, {"cluster", &PlanChoice::cluster},
    {"rows", &PlanChoice::rows},
};

std::string words_of(const PlanKey& key);
std::string words_of(const PlanChoice& choice);

// What plans depend on of a CUDA device.
struct PlanDevice {
    int sm_count, shared_bytes;
    bool sm_90;
    cuda::ResidentClusters resident_clusters;
};

// The choices that the op's plan function allows for these parameters, without those that come to the
// built-in plan. `device` is null on a CPU, where `threads` counts. Pure: pointers are not read.
#define PYKERNELS_DECLARE(op, Params) \
    std::vector<PlanChoice> plan_candidates(const Params& params, const PlanDevice* device, int threads);
PYKERNELS_PLANNED(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

#ifdef PYKERNELS_CUDA
namespace cuda {
PlanDevice plan_device(int device);
}
#endif

}  // namespace pykernels
