// Asynchronous copies: what they may touch, and when they land. The bytes move either at once or only when
// the copy is waited for, by the seed; either way nobody may look before.
#include <algorithm>

#include "simt/executor.h"

namespace pykernels::simt {
namespace {

// The hardware counts a phase's bytes in 20 bits.
constexpr uint32_t max_expected_bytes = (1u << 20) - 1;

}  // namespace

size_t Block::shared_offset(const void* address, size_t bytes, size_t alignment, const char* what,
                            Site site) {
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
        fail(FaultKind::misaligned, site, "%s: shared address %p is not a multiple of %zu", what, address,
             alignment);
    }
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - shared.begin());
    if (!shared.holds(address) || offset + bytes > shared.size()) {
        fail(FaultKind::out_of_bounds, site, "%s: %zu bytes at %p are not within the %zu of shared memory",
             what, bytes, address, shared.size());
    }
    return offset;
}

Copy Block::begin_copy(Thread& thread, void* to, const void* from, size_t bytes, size_t alignment,
                       const char* what, Site site) {
    Copy copy = {shared_offset(to, bytes, alignment, what, site), bytes, from, site, {}};
    if (reinterpret_cast<uintptr_t>(from) % alignment != 0) {
        fail(FaultKind::misaligned, site, "%s: global address %p is not a multiple of %zu", what, from,
             alignment);
    }
    executor().read_global(thread, from, bytes, Source::fresh_global, site);
    shared.begin_copy(thread, copy.offset, bytes, site);
    if (random() % 2) {
        move_bytes(copy);
        copy.source = nullptr;
    } else {
        std::memset(to, 0xff, bytes);
    }
    return copy;
}

void Block::move_bytes(const Copy& copy) {
    const void* const from = copy.pushed.empty() ? copy.source : copy.pushed.data();
    if (from) std::memcpy(shared.begin() + copy.offset, from, copy.bytes);
}

void Block::async_copy(Thread& thread, void* to, const void* from, size_t bytes, Site site) {
    const char* what = bytes == 4 ? "async_copy4" : "async_copy16";
    thread.copies.push_back(begin_copy(thread, to, from, bytes, bytes, what, site));
    ++thread.uncommitted;
}

void Block::async_commit(Thread& thread) {
    thread.groups.push_back(thread.uncommitted);
    thread.uncommitted = 0;
}

void Block::async_wait(Thread& thread, size_t pending) {
    while (thread.groups.size() > pending) {
        const auto end = thread.copies.begin() + static_cast<ptrdiff_t>(thread.groups.front());
        for (auto copy = thread.copies.begin(); copy != end; ++copy) {
            move_bytes(*copy);
            shared.land(thread, copy->offset, copy->bytes);
        }
        thread.copies.erase(thread.copies.begin(), end);
        thread.groups.erase(thread.groups.begin());
    }
}

void Block::make_barrier(Thread& thread, const void* address, uint32_t arrivals, Site site) {
    const size_t offset = shared_offset(address, 8, 8, "barrier_init", site);
    if (arrivals == 0)
        fail(FaultKind::misuse, site, "barrier_init: a phase needs one arrival at least, got 0");
    shared.make_barrier(thread, offset, site);
    barrier_at[offset] = static_cast<int>(barriers.size());
    BulkBarrier barrier;
    barrier.arrivals = barrier.missing = arrivals;
    barrier.maker = thread.number;
    barrier.seen.resize(threads.size());
    barriers.push_back(std::move(barrier));
}

void Block::barriers_ready(Thread& thread) {
    for (BulkBarrier& barrier : barriers) {
        if (barrier.maker == thread.number) barrier.ready = true;
    }
}

int Block::barrier_index(Thread& thread, const void* address, Site site) {
    const size_t offset = shared_offset(address, 8, 8, "a mbarrier", site);
    shared.use_barrier(thread, offset, site);
    return barrier_at[offset];
}

void Block::end_phase_if_complete(BulkBarrier& barrier) {
    if (barrier.missing > 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.missing = barrier.arrivals;
    wake_all(Wait::transaction_barrier);
}

void Block::arrive(Thread& thread, const void* address, uint32_t bytes, Site site) {
    BulkBarrier& barrier = barriers[static_cast<size_t>(barrier_index(thread, address, site))];
    if (bytes > max_expected_bytes) {
        fail(FaultKind::misuse, site, "barrier_expect: at most %u bytes, got %u", max_expected_bytes, bytes);
    }
    if (barrier.missing == 0) {
        fail(FaultKind::misuse, site, "barrier_expect: all %u arrivals of the phase have come already",
             barrier.arrivals);
    }
    barrier.bytes += bytes;
    --barrier.missing;
    end_phase_if_complete(barrier);
}

void Block::bulk_copy(Thread& thread, void* to, const void* from, uint32_t bytes, const void* address,
                      Site site) {
    BulkBarrier& barrier = barriers[static_cast<size_t>(barrier_index(thread, address, site))];
    if (!barrier.ready) {
        fail(FaultKind::misuse, site, "bulk_copy: its barrier was made, but not shown by barriers_ready");
    }
    if (bytes == 0 || bytes % 16 != 0) {
        fail(FaultKind::misaligned, site, "bulk_copy: bytes must be a multiple of 16, got %u", bytes);
    }
    barrier.copies.push_back(begin_copy(thread, to, from, bytes, 16, "bulk_copy", site));
    wake_all(Wait::transaction_barrier);  // the thread that waits completes the copy
}

void Block::wait_barrier(Thread& thread, const void* address, uint32_t parity, Site site) {
    const int index = barrier_index(thread, address, site);
    while (true) {
        BulkBarrier& barrier = barriers[static_cast<size_t>(index)];  // anew: the vector may have grown
        if (barrier.phase % 2 != parity % 2) {
            barrier.seen[static_cast<size_t>(thread.number)] = barrier.phase;
            std::vector<int>& seen = thread.warp->seen_since;
            if (std::find(seen.begin(), seen.end(), index) == seen.end()) seen.push_back(index);
            return;
        }
        if (barrier.copies.empty()) {
            pause(thread, Wait::transaction_barrier, "barrier_wait", site);
            continue;
        }
        const auto landed = barrier.copies.begin() + static_cast<ptrdiff_t>(random() % barrier.copies.size());
        move_bytes(*landed);
        shared.land(index, barrier.phase + 1, landed->offset, landed->bytes);
        barrier.bytes -= static_cast<int64_t>(landed->bytes);
        barrier.copies.erase(landed);
        end_phase_if_complete(barrier);
    }
}

bool Block::has_seen(const Thread& thread, int barrier, uint32_t phase) const {
    return barriers[static_cast<size_t>(barrier)].seen[static_cast<size_t>(thread.number)] >= phase;
}

}  // namespace pykernels::simt
