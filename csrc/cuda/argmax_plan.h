// The launch plan of argmax: a pure function of the vocabulary and the device.
#pragma once

#include <cstdint>

namespace pykernels::cuda {

constexpr int argmax_threads = 512;
// The largest portable cluster size.
constexpr int argmax_max_cluster = 8;

struct ArgmaxPlan {
    int cluster_blocks;  // blocks of one sequence
    bool vectors;        // rows are read as 16-byte vectors of eight logits
    int block_items;     // vectors, or logits, of a block; the last blocks may have fewer or none
};

// One cluster per sequence, of as many blocks (a power of two) as have an item for every thread. Before sm_90
// one block takes a sequence: reading the 300 KB of a large vocabulary takes microseconds of a step of tens
// of milliseconds.

constexpr ArgmaxPlan plan_argmax(int32_t vocab, bool vectors, bool sm_90) {
    const int items = vectors ? vocab / 8 : vocab;
    int blocks = 1;
    while (sm_90 && blocks < argmax_max_cluster && blocks * argmax_threads < items) blocks *= 2;
    return {blocks, vectors, (items - 1) / blocks + 1};
}

}  // namespace pykernels::cuda
