// What torch's own ops do beside computing: refuse what has no gradient, and count writes.
#pragma once

#include <initializer_list>

#include "binding/checks.h"

namespace pykernels::binding {

// As torch's out= ops: throws std::runtime_error where gradients are enabled and an argument requires one
// (these ops have none), and where a written tensor is an inference tensor outside of inference mode.
// Increments the version counters of what is written, so that autograd finds tensors it has saved
// overwritten. Costs nothing in inference mode, and without gradients two calls a written tensor.
void note_writes(const char* op, std::initializer_list<const Argument*> read,
                 std::initializer_list<const Argument*> written);

}  // namespace pykernels::binding
