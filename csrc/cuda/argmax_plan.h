// How argmax is laid over a GPU: a pure function of the vocabulary and the device.
#pragma once

#include <cstdint>

namespace pykernels::cuda {

constexpr int argmax_threads = 512;
// What a cluster has without asking for more.
constexpr int argmax_max_cluster = 8;

struct ArgmaxPlan {
    int cluster_blocks;  // blocks that share a sequence
    bool vectors;        // rows are vectors of eight logits
    int block_items;     // vectors, or logits, that a block looks at; the last blocks may find fewer or none
};

// A cluster a sequence: as many blocks, a power of two, as find an item for every thread. Before sm_90 a
// block takes a sequence alone: the 300 KB of a large vocabulary are microseconds of a step of tens of
// milliseconds.
constexpr ArgmaxPlan plan_argmax(int32_t vocab, bool vectors, bool sm_90) {
    const int items = vectors ? vocab / 8 : vocab;
    int blocks = 1;
    while (sm_90 && blocks < argmax_max_cluster && blocks * argmax_threads < items) blocks *= 2;
    return {blocks, vectors, (items - 1) / blocks + 1};
}

}  // namespace pykernels::cuda
