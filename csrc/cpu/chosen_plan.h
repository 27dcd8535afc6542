// What the table of plans (plan_choice.h) chooses for an op on this CPU's threads. Not of an instruction set:
// the table's code is compiled once.
#pragma once

#include "plan_choice.h"

namespace pykernels::cpu {

#define PYKERNELS_DECLARE(op, Params) PlanChoice chosen_plan(const Params& params);
PYKERNELS_PLANNED(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

}  // namespace pykernels::cpu
