// What the blocks of a cluster do together: the barrier of two halves, and reading one another's shared
// memory.
#include <algorithm>

#include "simt/executor.h"

namespace pykernels::simt {

void Block::arrive_in_cluster(Thread& thread, Site site) {
    meet_warp(thread, "cluster_arrive", site, false);
    if (thread.cluster_arrivals != thread.cluster_waits) {
        fail(FaultKind::misuse, site, "cluster_arrive twice, with no cluster_wait between");
    }
    ++thread.cluster_arrivals;
    thread.arrived_at[thread.cluster_arrivals % remembered_arrivals] = ++executor().time;
    ++cluster->arrived;
    cluster->end_phase_if_complete();
}

// A block's threads leave the wait together.
void Block::wait_in_cluster(Thread& thread, Site site) {
    if (thread.cluster_arrivals == thread.cluster_waits) {
        fail(FaultKind::misuse, site, "cluster_wait with no cluster_arrive before it");
    }
    while (cluster->phase < thread.cluster_arrivals) pause(thread, Wait::cluster, "cluster_wait", site);
    meet_block(thread, "cluster_wait", site, 1);
    ++thread.cluster_waits;
}

void Cluster::end_phase_if_complete() {
    if (arrived == 0 || arrived < threads - ended) return;
    arrived = 0;
    ++phase;
    for (const auto& block : blocks) block->wake_all(Wait::cluster);
}

void Block::read_of_cluster(Thread& thread, int rank, const void* own, size_t bytes, Site site) {
    const size_t offset = shared_offset(own, bytes, bytes, "load_shared_of", site);
    if (rank < 0 || rank >= static_cast<int>(cluster->blocks.size())) {
        fail(FaultKind::misuse, site, "load_shared_of block %d of a cluster of %zu", rank,
             cluster->blocks.size());
    }
    Block& other = *cluster->blocks[static_cast<size_t>(rank)];
    if (&other == this) return shared.read(thread, offset, bytes, site);
    if (other.ended()) fail(FaultKind::misuse, site, "load_shared_of block %d, which has ended", rank);
    other.shared.read_from_outside(thread, other, offset, bytes, site);
    other.last_outside_read = std::max(other.last_outside_read, thread.cluster_arrivals + 1);
    other.outside_read_site = site;
}

void SharedMemory::read_from_outside(const Thread& thread, const Block& owner, size_t offset, size_t bytes,
                                     Site site) {
    const uint32_t seen = thread.cluster_waits;
    for (size_t i = offset / granule_bytes; i < (offset + bytes + granule_bytes - 1) / granule_bytes; ++i) {
        Granule& granule = granules_[i];
        if (granule.state == State::unwritten) {
            fail(FaultKind::uninitialised_read, site,
                 "reads byte %zu of another block's shared memory, which nobody has written",
                 i * granule_bytes);
        }
        if (granule.state != State::written) report_writer(granule, i * granule_bytes, "reads", site);
        // A bulk copy has no thread: it must have landed before any of its block arrived.
        const auto arrived_at = [&](const Thread& writer) {
            return writer.arrived_at[seen % remembered_arrivals];
        };
        uint32_t arrival = UINT32_MAX;
        if (granule.writer < owner.threads.size()) {
            arrival = arrived_at(owner.threads[granule.writer]);
        } else {
            for (const Thread& writer : owner.threads) arrival = std::min(arrival, arrived_at(writer));
        }
        if (seen == 0 || granule.write_time > arrival) {
            fail(FaultKind::shared_race, site,
                 "reads byte %zu of another block's shared memory, written at %s:%d, with no cluster_arrive "
                 "and "
                 "cluster_wait between",
                 i * granule_bytes, files_[granule.file], int{granule.line});
        }
        granule.outside_read =
            std::max(granule.outside_read, static_cast<uint16_t>(thread.cluster_arrivals + 1));
    }
}

}  // namespace pykernels::simt
