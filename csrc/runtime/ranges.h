// Checks of the values that ops read from memory and use as indices: positions, lengths, tokens,
// permutations. A program reads them anew each time it runs, so recording cannot check them.
//
// On the CPU every launch is checked. CUDA kernels clamp what they read, so that no access leaves the
// tensors, but the result of such a launch is not what was meant. With set_range_checks(true), or the
// environment variable PYKERNELS_CHECK_RANGES=1, CUDA launches are checked too: each copies the values to the
// host and waits for them. Launches that a CUDA graph captures cannot be checked.
#pragma once

#include "params.h"

namespace pykernels {

struct Target;

// Each throws std::invalid_argument, naming the op, the argument, what is allowed and what it got.
void check_ranges(const RopeKvAppendParams& params, const Target& target);
void check_ranges(const GqaDecodeParams& params, const Target& target);
void check_ranges(const QkvGemvParams& params, const Target& target);
void check_ranges(const Int4GemvParams& params, const Target& target);
void check_ranges(const Int4SwigluGemvParams& params, const Target& target);
void check_ranges(const Int4QkvGemvParams& params, const Target& target);
void check_ranges(const EmbeddingParams& params, const Target& target);
void check_ranges(const ArgmaxParams& params, const Target& target);

// An op whose parameters hold no such values.
template <class Params>
void check_ranges(const Params&, const Target&) {}

bool range_checks();
void set_range_checks(bool enabled);

}  // namespace pykernels
