// How many clusters of a launch are resident at once. A cluster lies within one GPC, whose SMs are rarely a
// multiple of its size, and GPCs differ from card to card: so the driver is asked.
#pragma once

namespace pykernels::cuda {

// The largest cluster, which needs cudaFuncAttributeNonPortableClusterSizeAllowed.
constexpr int max_cluster_blocks = 16;

struct ResidentClusters {
    // [blocks of a cluster], one block an SM. 0 where the device has no such clusters.
    int counts[max_cluster_blocks + 1];
    // The same with two blocks an SM.
    int paired[max_cluster_blocks + 1];
};

// Shared memory of a block of which two, and no more, are resident on an SM. An SM keeps a kilobyte for each
// of its blocks.
constexpr int paired_bytes(int block_bytes) {
    return block_bytes / 2 - 1024;
}

// Of the current device; read once per device. All 0 before sm_90.
const ResidentClusters& resident_clusters();

}  // namespace pykernels::cuda
