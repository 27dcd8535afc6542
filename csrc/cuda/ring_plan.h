// The sizes of a warp's ring (common/warp_ring.cuh), for kernels and for the plans that lay out shared
// memory.
#pragma once

namespace pykernels::cuda {

// A piece is what one bulk copy moves. 1 KB is 512 weights: every width of the three models is a multiple.
constexpr int ring_piece_bytes = 1024;
constexpr int ring_slot_bytes = 2 * ring_piece_bytes;
// cp.async waits by a count that is part of the instruction: one depth for all.
constexpr int ring_async_stages = 4;

// A warp's share of shared memory: its slots, then its transaction barriers.
constexpr int ring_bytes(int n_stages) {
    return n_stages * ring_slot_bytes;
}

}  // namespace pykernels::cuda
