// The one source that is compiled anew where the commit or a source changed: it holds nothing else.
#include "runtime/build_stamp.h"

#include "build_stamp_values.h"  // written by cmake/build_stamp.py, in each build

namespace pykernels {

BuildStamp build_stamp() {
    return {PYKERNELS_COMMIT, PYKERNELS_DIRTY, PYKERNELS_HASH_CSRC, PYKERNELS_HASH_PYKERNELS,
            PYKERNELS_HASH_BENCH};
}

}  // namespace pykernels
