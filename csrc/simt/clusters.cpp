// What the blocks of a cluster do together: the barrier of two halves, and reading one another's shared
// memory or pushing into it.
#include <algorithm>
#include <cstring>

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

// All threads of a block leave the wait at the same time.
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

Block& Block::block_of_cluster(int rank, const char* what, Site site) {
    if (rank < 0 || rank >= static_cast<int>(cluster->blocks.size())) {
        fail(FaultKind::misuse, site, "%s block %d of a cluster of %zu", what, rank, cluster->blocks.size());
    }
    Block& other = *cluster->blocks[static_cast<size_t>(rank)];
    if (other.ended()) fail(FaultKind::misuse, site, "%s block %d, which has ended", what, rank);
    return other;
}

void Block::read_of_cluster(Thread& thread, int rank, const void* own, size_t bytes, Site site) {
    const size_t offset = shared_offset(own, bytes, bytes, "load_shared_of", site);
    Block& other = block_of_cluster(rank, "load_shared_of", site);
    if (&other == this) return shared.read(thread, offset, bytes, site);
    other.shared.read_from_outside(thread, other, offset, bytes, site);
    other.last_outside_read = std::max(other.last_outside_read, thread.cluster_arrivals + 1);
    other.outside_read_site = site;
}

// The bytes land when the other block waits for them, as a bulk copy's do.
void Block::push(Thread& thread, int rank, const void* own, const void* value, size_t bytes,
                 const void* barrier, Site site) {
    const size_t offset = shared_offset(own, bytes, bytes, "push", site);
    const size_t barrier_offset = shared_offset(barrier, 8, 8, "a mbarrier", site);
    Block& other = block_of_cluster(rank, "push to", site);
    if (&other == this) {
        shared.use_barrier(thread, barrier_offset, site);
    } else {
        other.shared.use_barrier_from_outside(thread, other, barrier_offset, site);
    }
    BulkBarrier& there = other.barriers[static_cast<size_t>(other.barrier_at[barrier_offset])];
    if (!there.ready) {
        fail(FaultKind::misuse, site, "push: its barrier was made, but not shown by barriers_ready");
    }
    other.shared.begin_push(thread, other, offset, bytes, site);
    const auto* const first = static_cast<const unsigned char*>(value);
    there.copies.push_back({offset, bytes, nullptr, site, {first, first + bytes}});
    if (random() % 2) {
        other.move_bytes(there.copies.back());
    } else {
        std::memset(other.shared.begin() + offset, 0xff, bytes);
    }
    other.wake_all(Wait::transaction_barrier);
}

// Whether the owner's last write precedes the barrier.cluster.arrive that this thread of another block has
// waited for. A bulk copy belongs to no thread: it must have landed before any thread of its block arrived.
bool SharedMemory::shown_to_cluster(const Thread& thread, const Block& owner, const Granule& granule) {
    if (thread.cluster_waits == 0) return false;
    const auto before_arrival_of = [&](const Thread& writer) {
        return granule.write_time <= writer.arrived_at[thread.cluster_waits % remembered_arrivals];
    };
    if (granule.writer < owner.threads.size()) return before_arrival_of(owner.threads[granule.writer]);
    return std::all_of(owner.threads.begin(), owner.threads.end(), before_arrival_of);
}

void SharedMemory::use_barrier_from_outside(const Thread& thread, const Block& owner, size_t offset,
                                            Site site) const {
    const Granule& granule = granules_[offset / granule_bytes];
    if (granule.state != State::barrier) {
        fail(FaultKind::misuse, site, "no mbarrier was made at byte %zu of the other block's shared memory",
             offset);
    }
    if (!shown_to_cluster(thread, owner, granule)) {
        fail(FaultKind::misuse, site,
             "uses another block's mbarrier, made at %s:%d, with no cluster_arrive and "
             "cluster_wait between",
             files_[granule.file], int{granule.line});
    }
}

void SharedMemory::begin_push(const Thread& thread, const Block& owner, size_t offset, size_t bytes,
                              Site site) {
    if (&owner == thread.block) return begin_copy(thread, offset, bytes, site);
    for (size_t i = offset / granule_bytes; i < (offset + bytes) / granule_bytes; ++i) {
        const Granule& granule = granules_[i];
        if (granule.state == State::unwritten) continue;
        if (granule.state != State::written) report_writer(granule, i * granule_bytes, "pushes to", site);
        if (!shown_to_cluster(thread, owner, granule) || granule.own_read > thread.cluster_waits) {
            fail(FaultKind::shared_race, site,
                 "pushes to byte %zu of another block's shared memory, written at %s:%d, which that block "
                 "has used since its last cluster_arrive",
                 i * granule_bytes, files_[granule.file], int{granule.line});
        }
    }
    record_write(thread, offset, bytes, State::copying, site);
}

void SharedMemory::read_from_outside(const Thread& thread, const Block& owner, size_t offset, size_t bytes,
                                     Site site) {
    for (size_t i = offset / granule_bytes; i < (offset + bytes + granule_bytes - 1) / granule_bytes; ++i) {
        Granule& granule = granules_[i];
        if (granule.state == State::unwritten) {
            fail(FaultKind::uninitialised_read, site,
                 "reads byte %zu of another block's shared memory, which nobody has written",
                 i * granule_bytes);
        }
        if (granule.state != State::written) report_writer(granule, i * granule_bytes, "reads", site);
        if (!shown_to_cluster(thread, owner, granule)) {
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
