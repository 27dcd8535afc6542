// The sizes of a warp's ring (common/warp_ring.cuh), for kernels and for the plans that lay out shared
// memory.
#pragma once

namespace pykernels::cuda {

// Weights that one copy moves at most: 2 KB. Smaller copies cost more commands, larger ones make the ring
// coarse.
constexpr int ring_max_piece = 1024;
// cp.async waits by a count that is part of the instruction: one depth for all.
constexpr int ring_async_stages = 4;

// A warp's share of shared memory: slots of two pieces.
constexpr int ring_bytes(int n_stages, int piece_bytes) {
    return n_stages * 2 * piece_bytes;
}

}  // namespace pykernels::cuda
