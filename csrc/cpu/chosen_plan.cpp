#include "cpu/chosen_plan.h"

#include "cpu/gqa_plan.h"
#include "ops.h"
#include "plan_table.h"

namespace pykernels::cpu {
namespace {

// Splits that a workspace has no room for are refused, not reduced: the sums would be others than were
// chosen.
void check_choice(const GqaDecodeParams& params, const PlanKey& key, const PlanChoice& choice) {
    const bool asked = params.workspace == nullptr;  // for the workspace's size
    if (choice.splits == 0 || asked ||
        unified_counter_bytes(params.softmax) + choice.splits * gqa_split_bytes(params) <=
            params.workspace_bytes)
        return;
    refuse_plan(key, choice, "a workspace that was made under this table");
}

template <class Params>
void check_choice(const Params&, const PlanKey&, const PlanChoice&) {}

}  // namespace

#define PYKERNELS_CHOSEN(op, Params)                                  \
    PlanChoice chosen_plan(const Params& params) {                    \
        if (plan_table() == nullptr) return {};                       \
        const PlanKey key = plan_key(params, false);                  \
        const PlanChoice choice = planned_on_cpu(key, num_threads()); \
        check_choice(params, key, choice);                            \
        return choice;                                                \
    }
PYKERNELS_PLANNED(PYKERNELS_CHOSEN)

}  // namespace pykernels::cpu
