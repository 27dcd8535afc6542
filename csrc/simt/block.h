// A block of threads, each a fiber; warps run in a random order, lanes of a warp one after another until each
// waits. All that threads do together is here: barriers, what warps exchange, copies and their barriers.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt/cuda_language.h"
#include "simt/device_calls.h"
#include "simt/fault.h"
#include "simt/fiber.h"
#include "simt/global_memory.h"
#include "simt/shared_memory.h"

namespace pykernels::simt {

constexpr int warp_lanes = 32;
constexpr int max_block_threads = 1024;
constexpr int max_cluster_blocks = 16;

struct Block;
struct Grid;

using Random = std::minstd_rand;

// What a thread waits for.
enum class Wait : uint8_t { none, warp, block, transaction_barrier, cluster, producers, ended };

// Phases of the cluster's barrier whose times are kept; no thread is that many phases ahead of another.
constexpr size_t remembered_arrivals = 4;

struct Copy {
    size_t offset, bytes;  // of shared memory
    const void* source;    // null: the bytes were moved at once
    Site site;
    std::vector<unsigned char> pushed;  // by another block (st.async): the bytes, instead of a source
};

struct Warp {
    int first, lanes;
    int runnable, arrived = 0, ended = 0;
    const char* name = nullptr;  // the warp-collective call that the arrived lanes are in
    Site site = {};
    unsigned round = 0;           // of exchanges, whose slots are double-buffered
    uint32_t memory_epoch = 0;    // barriers of this warp so far
    std::vector<int> seen_since;  // mbarriers whose phases a lane has seen since the last one
    alignas(16) unsigned char slots[2][warp_lanes][exchange_slot_bytes];
};

struct Thread : Indices {
    Block* block;
    Warp* warp;
    int number, lane;
    std::unique_ptr<Fiber> fiber;
    Wait wait = Wait::none;
    const char* waits_at = "";
    Site site = {};
    bool has_waited = false;  // wait_for_producers() has returned
    // Whether a store to global memory was not followed by a fence yet, and when the last such store was, in
    // barriers of the block and of the warp.
    bool unfenced = false;
    uint32_t stored_epoch = 0, stored_warp_epoch = 0;
    // barrier.cluster.arrive and barrier.cluster.wait executed so far, and the epochs of the last arrives.
    uint32_t cluster_arrivals = 0, cluster_waits = 0;
    uint32_t arrived_at[remembered_arrivals] = {};
    // The epoch of its next access: other threads of the block are ordered behind it in any later epoch.
    uint32_t access_epoch() const;
    std::vector<Copy> copies;    // cp.async under way, oldest first
    std::vector<size_t> groups;  // how many of them each committed group has
    size_t uncommitted = 0;      // how many are in no group yet
};

struct BulkBarrier {
    uint32_t arrivals, missing;  // of a phase, and still missing in this one
    int maker;                   // the thread
    int64_t bytes = 0;           // expected and not yet landed
    uint32_t phase = 0;          // phases that have ended
    bool ready = false;          // the TMA unit sees it
    std::vector<Copy> copies;
    std::vector<uint32_t> seen;  // the last phase each thread knows to have ended
};

// Blocks that run at the same time.
struct Cluster {
    void end_phase_if_complete();
    bool complete() const { return ended == threads; }
    std::vector<std::unique_ptr<Block>> blocks;
    int threads = 0, arrived = 0, ended = 0;
    uint32_t phase = 0;  // of the barrier: phases that have ended
};

struct Block {
    Block(Grid& grid, int index, Cluster* cluster, Random& random);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    // Runs until every thread has ended or waits for producers, until it is another block's turn, or until a
    // fault.
    void run();
    bool runnable() const { return n_runnable > 0; }
    bool ended() const { return n_ended == static_cast<int>(threads.size()); }
    void wake_all(Wait wait);
    void report_deadlock();

    void meet_warp(Thread& thread, const char* name, Site site, bool orders_memory);
    void meet_block(Thread& thread, const char* name, Site site, uint32_t epochs);
    void end(Thread& thread);
    void pause(Thread& thread, Wait wait, const char* at, Site site);

    void make_barrier(Thread& thread, const void* address, uint32_t arrivals, Site site);
    void barriers_ready(Thread& thread);
    void arrive(Thread& thread, const void* address, uint32_t bytes, Site site);
    void bulk_copy(Thread& thread, void* to, const void* from, uint32_t bytes, const void* barrier,
                   Site site);
    void wait_barrier(Thread& thread, const void* address, uint32_t parity, Site site);
    bool has_seen(const Thread& thread, int barrier, uint32_t phase) const;

    void async_copy(Thread& thread, void* to, const void* from, size_t bytes, Site site);
    void async_commit(Thread& thread);
    void async_wait(Thread& thread, size_t pending);

    void arrive_in_cluster(Thread& thread, Site site);
    void wait_in_cluster(Thread& thread, Site site);
    void read_of_cluster(Thread& thread, int rank, const void* own, size_t bytes, Site site);
    void push(Thread& thread, int rank, const void* own, const void* value, size_t bytes, const void* barrier,
              Site site);

    Grid& grid;
    const int index;
    Cluster* const cluster;
    Random& random;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    SharedMemory shared;
    // Counts the block's barriers: block_barrier adds two, cluster_wait one. What a thread does between
    // cluster_arrive and cluster_wait (Thread::access_epoch) is thus not ordered before the others' wait.
    uint32_t epoch = 0;
    int n_runnable = 0, n_ended = 0, at_barrier = 0;
    // Whether a thread gave true to the block_any() that threads wait at, and to the last one.
    bool vote = false, last_vote = false;
    const char* barrier_name = "";
    Site barrier_site = {};
    // Another block's last read: the phase of the cluster's barrier that ends it, and where it was.
    uint32_t last_outside_read = 0;
    Site outside_read_site = {};
    bool triggered = false;
    std::vector<BulkBarrier> barriers;
    std::unordered_map<size_t, int> barrier_at;

  private:
    void run_warp(Warp& warp);
    void wake(Thread& thread);
    Block& block_of_cluster(int rank, const char* what, Site site);
    int barrier_index(Thread& thread, const void* address, Site site);
    void end_phase_if_complete(BulkBarrier& barrier);
    size_t shared_offset(const void* address, size_t bytes, size_t alignment, const char* what, Site site);
    Copy begin_copy(Thread& thread, void* to, const void* from, size_t bytes, size_t alignment,
                    const char* what, Site site);
    void move_bytes(const Copy& copy);
};

// Reports, and unwinds the thread that runs.
[[noreturn, gnu::format(printf, 3, 4)]] void fail(FaultKind kind, Site site, const char* format, ...);

}  // namespace pykernels::simt
