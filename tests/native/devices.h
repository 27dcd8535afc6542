// The cards that plans are tested with: what a plan reads of each.
#pragma once

#include "cuda/common/resident_clusters.h"

namespace pykernels::test {

struct Device {
    const char* name;
    int sm_count, shared_bytes;
    bool sm_90;
    // SMs of a GPC, of which clusters take whole ones; 0: no clusters. Fewer are available on some cards than
    // the architecture has, and which ones differs from card to card.
    int gpc_sms;
    int max_cluster;

    cuda::ResidentClusters resident_clusters() const {
        cuda::ResidentClusters resident = {};
        if (gpc_sms == 0) return resident;
        for (int blocks = 2; blocks <= max_cluster; ++blocks) {
            for (int left = sm_count; left > 0; left -= gpc_sms) {
                resident.counts[blocks] += (left < gpc_sms ? left : gpc_sms) / blocks;
                resident.paired[blocks] += 2 * (left < gpc_sms ? left : gpc_sms) / blocks;
            }
        }
        return resident;
    }
};

// A block's shared memory is the architecture's limit for one block: 163, 99 and 227 KB. From sm_90 on none
// but the H100 and H200 was ever run: SM counts are those of the vendor's tables, GPCs and clusters a guess
// at the low end.
constexpr Device devices[] = {
    {"A100 (sm_80)", 108, 163 * 1024, false, 0, 1},
    {"Orin (sm_87)", 16, 163 * 1024, false, 0, 1},
    {"L40S (sm_89)", 142, 99 * 1024, false, 0, 1},
    {"L4 (sm_89)", 58, 99 * 1024, false, 0, 1},
    {"H100 PCIe (sm_90)", 114, 227 * 1024, true, 18, 16},
    {"H200 (sm_90)", 132, 227 * 1024, true, 18, 16},
    {"B200 (sm_100)", 148, 227 * 1024, true, 18, 16},
    {"Jetson Thor (sm_110)", 20, 227 * 1024, true, 10, 8},
    {"RTX 5090 (sm_120)", 170, 99 * 1024, true, 14, 8},
    {"RTX PRO 6000 (sm_120)", 188, 99 * 1024, true, 16, 8},
    {"no clusters (sm_120)", 84, 99 * 1024, true, 0, 1},
    {"one SM (sm_89)", 1, 99 * 1024, false, 0, 1},
    {"one large SM (sm_90)", 1, 227 * 1024, true, 0, 1},
};

}  // namespace pykernels::test
