// What this library was built from (cmake/build_stamp.py).
#pragma once

namespace pykernels {

struct BuildStamp {
    const char* commit;          // "": unknown
    int dirty;                   // 1 where the sources differed from the commit, 0 where not, -1: unknown
    const char* csrc_hash;       // of csrc/ without simt/
    const char* pykernels_hash;  // of the Python beside it, as pykernels/source_hash.py takes it
    const char* bench_hash;
};

BuildStamp build_stamp();

}  // namespace pykernels
