// What threads do to memory: bounds, alignment, and the order between launches and between blocks. Also the
// functions of device_calls.h, which device.h calls.
#include <algorithm>

#include "simt/device_calls.h"
#include "simt/executor.h"

namespace pykernels::simt {
namespace {

// A thread yields to others after a random number of accesses, at most this many.
constexpr unsigned accesses_per_turn = 1024;

Grid::Progress& progress_of(const Block& block) {
    return block.grid.progress[static_cast<size_t>(block.index)];
}

void check_alignment(const void* pointer, size_t bytes, const char* action, Site site) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
        fail(FaultKind::misaligned, site, "%s %zu bytes at %p, which is not a multiple of %zu", action, bytes,
             pointer, bytes);
    }
}

void take_turns(Thread& thread, Site site) {
    if (--executor().accesses_left > 0) return;
    executor().accesses_left = 1 + static_cast<unsigned>(thread.block->random()) % accesses_per_turn;
    thread.block->pause(thread, Wait::none, "", site);
}

// The offset of an access that begins in shared memory.
size_t shared_offset(Block& block, const void* pointer, size_t bytes, const char* action, Site site) {
    const auto offset =
        static_cast<size_t>(static_cast<const unsigned char*>(pointer) - block.shared.begin());
    if (offset + bytes > block.shared.size()) {
        fail(FaultKind::out_of_bounds, site, "%s %zu bytes at byte %zu of %zu bytes of shared memory", action,
             bytes, offset, block.shared.size());
    }
    return offset;
}

}  // namespace

Executor::Access Executor::check_bounds(Thread& thread, const void* pointer, size_t bytes, const char* action,
                                        Site site) {
    Buffer* buffer = memory.find(pointer);
    if (!buffer) {
        fail(FaultKind::out_of_bounds, site,
             "%s %zu bytes at %p, which is in no buffer and not in the block's %zu bytes of shared memory",
             action, bytes, pointer, thread.block->shared.size());
    }
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(pointer) - buffer->begin);
    if (offset + bytes > buffer->bytes) {
        fail(FaultKind::out_of_bounds, site, "%s %zu bytes at byte %zu of a buffer of %zu", action, bytes,
             offset, buffer->bytes);
    }
    return {buffer, offset / granule_bytes, (offset + bytes + granule_bytes - 1) / granule_bytes};
}

Grid& Executor::grid_of(Unit unit) {
    const auto after =
        std::upper_bound(grids_.begin(), grids_.end(), unit,
                         [](Unit wanted, const auto& grid) { return wanted < grid->first_unit; });
    return **(after - 1);
}

// Reports an access that is not ordered after the last one of a unit (a block of a launch) to the same bytes.
// `fresh`: the access bypasses the L1, or is a store.
void Executor::check_order(Thread& thread, Touch last, bool fresh, bool atomic, const char* action,
                           const char* before, const Access& access, Site site) {
    const size_t offset = access.first * granule_bytes, bytes = access.buffer->bytes;
    Grid& own = thread.block->grid;
    Grid& other = grid_of(last.unit);
    if (&other != &own) {
        const std::vector<bool>& known = thread.has_waited ? own.after : own.before;
        const auto number = static_cast<size_t>(other.number);
        if (other.number > own.number || !known[number]) {
            fail(FaultKind::unordered_launches, site,
                 "%s byte %zu of a buffer of %zu, which launch %d %s, %s", action, offset, bytes,
                 other.number, before,
                 other.number > own.number ? "without having waited for this one"
                                           : "for which this thread has not waited");
        }
        return;
    }
    if (atomic) return;
    const auto index = static_cast<int>(last.unit - own.first_unit);
    if (index == thread.block->index) return;
    const Grid::Progress& theirs = own.progress[static_cast<size_t>(index)];
    const Grid::Progress& mine = progress_of(*thread.block);
    const char* missing = nullptr;
    // Their first atomic since publishes it; later ones have nothing more to say.
    const auto published = std::upper_bound(theirs.atomics.begin(), theirs.atomics.end(), last.time);
    if (published == theirs.atomics.end() || mine.acquired <= *published) {
        missing = "with no atomic and fence of both between";
    } else if (theirs.unfenced) {
        missing = "which stored it without a fence before its atomic";
    } else if (!fresh) {
        missing = "by a load that may find an old value in the L1; load_fresh() does not";
    }
    if (missing) {
        fail(FaultKind::unordered_blocks, site,
             "%s byte %zu of a buffer of %zu, which block %d of this launch %s, %s", action, offset, bytes,
             index, before, missing);
    }
}

// The L1 may still hold what this block loaded before its griddepcontrol.wait, stale since an earlier launch
// wrote it.
void Executor::check_stale(Thread& thread, Unit unit, const Access& access, Site site) {
    const Grid& own = thread.block->grid;
    for (size_t i = access.first; i < access.end; ++i) {
        const Unit writer = access.buffer->writer[i].unit;
        if (access.buffer->early[i] != unit || writer < base_unit_) continue;
        const Grid& other = grid_of(writer);
        if (other.number >= own.number || own.before[static_cast<size_t>(other.number)]) continue;
        fail(FaultKind::unordered_launches, site,
             "reads byte %zu of a buffer of %zu, which launch %d wrote, by a load that may find what this "
             "block "
             "loaded there ahead of its wait in the L1; load_fresh() does not",
             access.first * granule_bytes, access.buffer->bytes, other.number);
    }
}

bool Executor::read_global(Thread& thread, const void* pointer, size_t bytes, Source source, Site site) {
    const bool fresh = source == Source::fresh_global;
    const Access access = check_bounds(thread, pointer, bytes, "reads", site);
    const Unit unit = thread.block->grid.first_unit + static_cast<Unit>(thread.block->index);
    Unit latest = 0;
    for (size_t i = access.first; i < access.end; ++i)
        latest = std::max(latest, access.buffer->writer[i].unit);
    const Grid& grid = thread.block->grid;
    if ((fresh || source == Source::streamed_global) && grid.programmatic && !thread.has_waited) {
        // A prefetch before the wait: it is allowed, and its value must not be used where it is stale.
        if (!fresh)
            std::fill(access.buffer->early.get() + access.first, access.buffer->early.get() + access.end,
                      unit);
        const bool early = latest >= base_unit_ && grid_of(latest).number < grid.number &&
                           !grid.before[static_cast<size_t>(grid_of(latest).number)];
        return !early;
    }
    if (!fresh && thread.has_waited) check_stale(thread, unit, access, site);
    for (size_t i = access.first; i < access.end; ++i) {
        if (access.buffer->reader[i].unit <= unit) access.buffer->reader[i] = {unit, time};
    }
    if (latest < base_unit_) return true;
    for (size_t i = access.first; i < access.end; ++i) {
        const Touch writer = access.buffer->writer[i];
        if (writer.unit >= base_unit_)
            check_order(thread, writer, fresh, false, "reads", "wrote", access, site);
    }
    return true;
}

// No value is read, and the L2 is where all blocks and launches meet: it needs no order.
void Executor::prefetch_global(Thread& thread, const void* pointer, Site site) {
    check_bounds(thread, pointer, 1, "prefetches", site);
}

// Every access that is no plain read: checks it against the last ones of others, and is the last one from now
// on.
void Executor::touch(Thread& thread, const Access& access, bool writes, bool atomic, const char* action,
                     Site site) {
    const Unit unit = thread.block->grid.first_unit + static_cast<Unit>(thread.block->index);
    for (size_t i = access.first; i < access.end; ++i) {
        const Touch writer = access.buffer->writer[i], reader = access.buffer->reader[i];
        if (writer.unit >= base_unit_)
            check_order(thread, writer, true, atomic, action, "wrote", access, site);
        if (writes && reader.unit >= base_unit_)
            check_order(thread, reader, true, atomic, action, "read", access, site);
        (writes ? access.buffer->writer[i] : access.buffer->reader[i]) = {unit, time};
    }
}

void Executor::write_global(Thread& thread, const void* pointer, size_t bytes, Site site) {
    touch(thread, check_bounds(thread, pointer, bytes, "writes", site), true, false, "writes", site);
    thread.unfenced = true;
    thread.stored_epoch = thread.access_epoch();
    thread.stored_warp_epoch = thread.warp->memory_epoch;
}

void Executor::atomic_global(Thread& thread, const void* pointer, size_t bytes, Site site) {
    touch(thread, check_bounds(thread, pointer, bytes, "updates", site), true, true, "updates", site);
    Grid::Progress& progress = progress_of(*thread.block);
    progress.atomics.push_back(++time);  // behind what it wrote itself
    for (const Thread& other : thread.block->threads) progress.unfenced |= other.unfenced;
}

void Executor::flagged_global(Thread& thread, const void* pointer, size_t bytes, bool writes, Site site) {
    const char* const action = writes ? "writes" : "reads";
    touch(thread, check_bounds(thread, pointer, bytes, action, site), writes, true, action, site);
}

void Executor::fence(Thread& thread) {
    // A fence covers what came before it: the thread's own stores, and those a barrier has ordered before it.
    for (Thread& other : thread.block->threads) {
        if (other.number == thread.number || other.stored_epoch < thread.block->epoch ||
            (other.warp == thread.warp && other.stored_warp_epoch != thread.warp->memory_epoch)) {
            other.unfenced = false;
        }
    }
    Grid::Progress& progress = progress_of(*thread.block);
    if (!progress.atomics.empty()) progress.acquired = progress.atomics.back();
}

// --- device_calls.h

bool check_load(const void* pointer, size_t bytes, Source source, Site site) {
    Thread& thread = current();
    take_turns(thread, site);
    check_alignment(pointer, bytes, "reads", site);
    Block& block = *thread.block;
    if (source == Source::any && block.shared.holds(pointer)) {
        block.shared.read(thread, shared_offset(block, pointer, bytes, "reads", site), bytes, site);
        return true;
    }
    return executor().read_global(thread, pointer, bytes, source, site);
}

void check_prefetch(const void* pointer, Site site) {
    executor().prefetch_global(current(), pointer, site);
}

void check_store(const void* pointer, size_t bytes, Site site) {
    Thread& thread = current();
    take_turns(thread, site);
    check_alignment(pointer, bytes, "writes", site);
    Block& block = *thread.block;
    if (block.shared.holds(pointer)) {
        block.shared.write(thread, shared_offset(block, pointer, bytes, "writes", site), bytes, site);
    } else {
        executor().write_global(thread, pointer, bytes, site);
    }
}

void check_atomic(const void* pointer, size_t bytes, Site site) {
    Thread& thread = current();
    thread.block->pause(thread, Wait::none, "", site);  // lets other blocks' atomics come first
    check_alignment(pointer, bytes, "updates", site);
    executor().atomic_global(thread, pointer, bytes, site);
}

void check_flagged(const void* pointer, size_t bytes, bool writes, Site site) {
    Thread& thread = current();
    thread.block->pause(thread, Wait::none, "",
                        site);  // lets the other side of the flag come first
    check_alignment(pointer, bytes, writes ? "writes" : "reads", site);
    executor().flagged_global(thread, pointer, bytes, writes, site);
}

unsigned char* shared_begin() {
    return current().block->shared.begin();
}

int lane_index() {
    return current().lane;
}

int warp_lane_count() {
    return current().warp->lanes;
}

void meet_block(Site site) {
    Thread& thread = current();
    thread.block->meet_block(thread, "block_barrier", site, 2);
}

bool vote_in_block(bool vote, Site site) {
    Thread& thread = current();
    thread.block->vote |= vote;
    thread.block->meet_block(thread, "block_any", site, 2);
    return thread.block->last_vote;
}

void meet_warp(Site site) {
    Thread& thread = current();
    thread.block->meet_warp(thread, "warp_barrier", site, true);
}

const unsigned char* exchange(const void* value, size_t bytes, const char* name, Site site) {
    Thread& thread = current();
    auto& slots = thread.warp->slots[thread.warp->round % 2];
    std::memcpy(slots[thread.lane], value, bytes);
    thread.block->meet_warp(thread, name, site, false);
    return slots[0];
}

void no_lane(const char* name, int lane, Site site) {
    fail(FaultKind::misuse, site, "%s from lane %d of a warp of %d lanes", name, lane, warp_lane_count());
}

int cluster_rank() {
    const Thread& thread = current();
    return thread.block->index % thread.block->grid.cluster_blocks;
}

void arrive_in_cluster(Site site) {
    Thread& thread = current();
    thread.block->arrive_in_cluster(thread, site);
}

void wait_in_cluster(Site site) {
    Thread& thread = current();
    thread.block->wait_in_cluster(thread, site);
}

const void* check_load_of_cluster(int rank, const void* own, size_t bytes, Site site) {
    Thread& thread = current();
    Block& block = *thread.block;
    take_turns(thread, site);
    block.read_of_cluster(thread, rank, own, bytes, site);
    return block.cluster->blocks[static_cast<size_t>(rank)]->shared.begin() +
           (static_cast<const unsigned char*>(own) - block.shared.begin());
}

void begin_push(int rank, const void* own, const void* value, size_t bytes, int barrier_rank,
                const void* own_barrier, Site site) {
    Thread& thread = current();
    take_turns(thread, site);
    if (barrier_rank != rank) {
        fail(FaultKind::misuse, site, "push to block %d, with a barrier of block %d", rank, barrier_rank);
    }
    thread.block->push(thread, rank, own, value, bytes, own_barrier, site);
}

void make_barrier(const void* barrier, uint32_t arrivals, Site site) {
    Thread& thread = current();
    thread.block->make_barrier(thread, barrier, arrivals, site);
}

void show_barriers() {
    current().block->barriers_ready(current());
}

void arrive(const void* barrier, uint32_t bytes, Site site) {
    Thread& thread = current();
    thread.block->arrive(thread, barrier, bytes, site);
}

void begin_bulk_copy(void* to, const void* from, uint32_t bytes, const void* barrier, Site site) {
    Thread& thread = current();
    thread.block->bulk_copy(thread, to, from, bytes, barrier, site);
}

void wait_barrier(const void* barrier, uint32_t parity, Site site) {
    Thread& thread = current();
    thread.block->wait_barrier(thread, barrier, parity, site);
}

void begin_async_copy(void* to, const void* from, size_t bytes, Site site) {
    Thread& thread = current();
    thread.block->async_copy(thread, to, from, bytes, site);
}

void commit_async_copies() {
    current().block->async_commit(current());
}

void wait_async_copies(int pending) {
    current().block->async_wait(current(), static_cast<size_t>(pending));
}

void trigger_dependents() {
    executor().trigger(current());
}

void wait_producers(Site site) {
    executor().wait_for_producers(current(), site);
}

void fence() {
    executor().fence(current());
}

uint64_t clock_ns(Site site) {
    Thread& thread = current();
    take_turns(thread, site);
    return executor().clock_ns();
}

uint32_t sm_index() {
    return indices->block_index.x % static_cast<uint32_t>(executor().settings().sm_count);
}

}  // namespace pykernels::simt
