// The device: its memory and its one stream of launches.
//
// Launches wait until synchronize() runs them. A plain launch starts when all before it have ended. A
// programmatic one starts when every block of the one before has called launch_dependents() or ended, and its
// wait_for_producers() returns when all of them have ended. Blocks that may run take turns, chosen by the
// seed.
//
// One thread of the host uses it at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "simt/block.h"
#include "simt/device_calls.h"
#include "simt/fault.h"
#include "simt/global_memory.h"

namespace pykernels::simt {

// `seed` decides every choice; seed % 3 the order of launches: at random, later ones first, earlier first.
struct Settings {
    uint64_t seed = 0;
    int sm_count = 4;
    int shared_bytes = 227 * 1024;
    int arch = 90;  // __CUDA_ARCH__ / 10
};

struct Grid {
    std::function<void()> body;
    int blocks, cluster_blocks, threads;
    size_t shared_bytes;
    bool programmatic;
    int number = 0;          // among the launches of one synchronize()
    Unit first_unit = 0;     // its blocks' numbers follow one another
    std::vector<int> order;  // of its clusters
    // What orders blocks of one launch. Per block: when it did its atomics, the time of its last one when it
    // fenced after it, and whether a store was not fenced before one.
    struct Progress {
        std::vector<uint32_t> atomics;
        uint32_t acquired = 0;
        bool unfenced = false;
    };
    std::vector<Progress> progress;
    int started = 0, triggered = 0, ended = 0;
    // Whose writes are visible: before wait_for_producers() and after it, one flag a launch.
    std::vector<bool> before, after;
    bool all_triggered_after_wait = true, any_waited = false;
    bool complete() const { return ended == blocks; }
};

class Executor {
  public:
    void configure(const Settings& settings);
    const Settings& settings() const { return settings_; }
    void enqueue(std::function<void()> body, int cluster_blocks, int blocks, int threads, size_t shared_bytes,
                 bool programmatic);
    // Runs what was enqueued. Throws the Fault of the first thread that did what it must not; then the rest
    // of the launches is dropped.
    void synchronize();

    GlobalMemory memory;
    uint32_t time = 0;           // counts writes, arrivals and atomics of one synchronize()
    unsigned accesses_left = 1;  // until the thread that runs yields

    // --- for the threads
    // False where a fresh or streamed load comes before wait_for_producers() and finds what an earlier launch
    // writes or has written: it reads anything, and must be thrown away.
    bool read_global(Thread& thread, const void* pointer, size_t bytes, Source source, Site site);
    void prefetch_global(Thread& thread, const void* pointer, Site site);
    void write_global(Thread& thread, const void* pointer, size_t bytes, Site site);
    void atomic_global(Thread& thread, const void* pointer, size_t bytes, Site site);
    void flagged_global(Thread& thread, const void* pointer, size_t bytes, bool writes, Site site);
    void fence(Thread& thread);
    void trigger(Thread& thread);
    void wait_for_producers(Thread& thread, Site site);
    uint64_t clock_ns();
    // A fault is kept until the fiber that reports it has left.
    void set_fault(FaultKind kind, Site site, const std::string& message);
    bool has_fault() const { return fault_.has_value(); }

    std::unique_ptr<Fiber> take_fiber();
    void give_fiber(std::unique_ptr<Fiber> fiber);

  private:
    struct Access {
        Buffer* buffer;
        size_t first, end;  // granules
    };
    Access check_bounds(Thread& thread, const void* pointer, size_t bytes, const char* action, Site site);
    void check_order(Thread& thread, Touch last, bool fresh, bool atomic, const char* action,
                     const char* before, const Access& access, Site site);
    void touch(Thread& thread, const Access& access, bool writes, bool atomic, const char* action, Site site);
    void check_stale(Thread& thread, Unit unit, const Access& access, Site site);
    bool may_start(const Grid& grid) const;
    void open(Grid& grid);
    void start_cluster(Grid& grid);
    void block_ended(Block& block);
    void run_all();
    Grid& grid_of(Unit unit);

    Settings settings_;
    Random random_;
    std::vector<std::unique_ptr<Grid>> grids_;
    std::vector<std::unique_ptr<Cluster>> clusters_;
    std::vector<Block*> resident_;  // those that have not ended
    std::vector<std::unique_ptr<Fiber>> spare_fibers_;
    std::optional<Fault> fault_;
    Unit next_unit_ = 1, base_unit_ = 1;
    uint64_t clock_ns_ = 0;
};

Executor& executor();
// The thread that runs.
Thread& current();

}  // namespace pykernels::simt
