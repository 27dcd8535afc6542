// Variants of the int4 GEMVs that no GPU has measured yet (docs/tried.md has the predictions). The
// environment variable PYKERNELS_INT4_VARIANT chooses one, so that bench/gpu_int4_variants.sh can measure it
// against the default.
#pragma once

#include <cstdlib>
#include <cstring>

namespace pykernels::cuda {

struct Int4Variants {
    bool split_columns;  // "split": pairs of blocks share the rows of a long weight
};

inline Int4Variants read_int4_variants() {
    const char* name = std::getenv("PYKERNELS_INT4_VARIANT");
    return {name != nullptr && std::strcmp(name, "split") == 0};
}

// Read once; on the executor (docs/simt.md), whose tests compare them, at every launch.
inline Int4Variants int4_variants() {
#ifdef PYKERNELS_SIMT
    return read_int4_variants();
#else
    static const Int4Variants variants = read_int4_variants();
    return variants;
#endif
}

}  // namespace pykernels::cuda
