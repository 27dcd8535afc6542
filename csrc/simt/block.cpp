#include "simt/block.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "simt/executor.h"

namespace pykernels::simt {
namespace {

// One switch between warps in this many, on average, is a switch to another block.
constexpr unsigned turns_per_block = 32;

// Unwinds a thread that reported a fault.
struct Stop {};

void thread_main(void* argument) {
    Thread& thread = *static_cast<Thread*>(argument);
    try {
        thread.block->grid.body();
        thread.block->end(thread);
    } catch (const Stop&) {
    }
}

// With PYKERNELS_SIMT_TRACE in the environment a fault prints the command that names its callers: the site is
// often a line of a helper.
void print_trace() {
    if (!std::getenv("PYKERNELS_SIMT_TRACE")) return;
    void* frames[32];
    const int count = backtrace(frames, 32);
    Dl_info own = {}, info = {};
    dladdr(reinterpret_cast<const void*>(&print_trace), &own);
    std::fprintf(stderr, "addr2line -Cfipse %s", own.dli_fname);
    for (int i = 2; i < count; ++i) {  // the caller of fail() is frame 2
        if (!dladdr(frames[i], &info) || info.dli_fbase != own.dli_fbase) continue;
        std::fprintf(
            stderr, " %#zx",
            static_cast<size_t>(static_cast<char*>(frames[i]) - static_cast<char*>(info.dli_fbase)) - 1);
    }
    std::fprintf(stderr, "\n");
}

std::string place(Site site) {
    return std::string(site.file) + ":" + std::to_string(site.line);
}

}  // namespace

const Indices* indices = nullptr;

Thread& current() {
    return *const_cast<Thread*>(static_cast<const Thread*>(indices));
}

void fail(FaultKind kind, Site site, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    print_trace();
    Thread& thread = current();
    executor().set_fault(kind, site,
                         std::string(text) + " (launch " + std::to_string(thread.block->grid.number) +
                             ", block " + std::to_string(thread.block->index) + ", thread " +
                             std::to_string(thread.number) + ")");
    throw Stop{};
}

Block::Block(Grid& grid, int index, Cluster* cluster, Random& random)
    : grid(grid), index(index), cluster(cluster), random(random) {
    threads.resize(static_cast<size_t>(grid.threads));
    warps.resize((threads.size() + warp_lanes - 1) / warp_lanes);
    shared.reset(grid.shared_bytes);
    n_runnable = grid.threads;
    for (size_t w = 0; w < warps.size(); ++w) {
        warps[w].first = static_cast<int>(w) * warp_lanes;
        warps[w].lanes = std::min(warp_lanes, grid.threads - warps[w].first);
        warps[w].runnable = warps[w].lanes;
    }
    for (int i = 0; i < grid.threads; ++i) {
        Thread& thread = threads[static_cast<size_t>(i)];
        thread.thread_index = {static_cast<unsigned>(i), 0, 0};
        thread.block_index = {static_cast<unsigned>(index), 0, 0};
        thread.block_size.x = static_cast<unsigned>(grid.threads);
        thread.grid_size.x = static_cast<unsigned>(grid.blocks);
        thread.block = this;
        thread.warp = &warps[static_cast<size_t>(i / warp_lanes)];
        thread.number = i;
        thread.lane = i % warp_lanes;
        thread.fiber = executor().take_fiber();
        thread.fiber->prepare(thread_main, &thread);
    }
}

Block::~Block() {
    for (Thread& thread : threads) executor().give_fiber(std::move(thread.fiber));
}

void Block::run() {
    while (n_runnable > 0) {
        size_t w = random() % warps.size();
        while (warps[w].runnable == 0) w = (w + 1) % warps.size();
        run_warp(warps[w]);
        if (executor().has_fault()) return;
        if (random() % turns_per_block == 0) return;
    }
    const bool waits_for_others = std::any_of(threads.begin(), threads.end(), [](const Thread& thread) {
        return thread.wait == Wait::producers || thread.wait == Wait::cluster ||
               (thread.wait == Wait::transaction_barrier && thread.block->cluster->blocks.size() > 1);
    });
    if (!ended() && !waits_for_others) report_deadlock();
}

void Block::run_warp(Warp& warp) {
    const auto lanes = static_cast<unsigned>(warp.lanes);
    const unsigned first = static_cast<unsigned>(random()) % lanes;
    const unsigned step = random() % 2 ? 1 : lanes - 1;
    for (unsigned i = 0; i < lanes && warp.runnable > 0; ++i) {
        Thread& thread = threads[static_cast<size_t>(warp.first) + (first + i * step) % lanes];
        if (thread.wait != Wait::none) continue;
        indices = &thread;
        thread.fiber->enter();
        if (executor().has_fault()) return;
    }
}

void Block::pause(Thread& thread, Wait wait, const char* at, Site site) {
    thread.wait = wait;
    thread.waits_at = at;
    thread.site = site;
    if (wait != Wait::none) {
        --thread.warp->runnable;
        --n_runnable;
    }
    thread.fiber->leave();
}

void Block::wake(Thread& thread) {
    thread.wait = Wait::none;
    ++thread.warp->runnable;
    ++n_runnable;
}

void Block::wake_all(Wait wait) {
    for (Thread& thread : threads) {
        if (thread.wait == wait) wake(thread);
    }
}

void Block::report_deadlock() {
    // Waiting threads by source line: a barrier that some of them miss is reported ahead of other waits.
    struct Group {
        const Thread* thread;
        int count;
    };
    std::vector<Group> groups;
    for (const Thread& thread : threads) {
        const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
            return group.thread->wait == thread.wait && group.thread->site.line == thread.site.line;
        });
        if (same == groups.end()) {
            groups.push_back({&thread, 1});
        } else {
            ++same->count;
        }
    }
    std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
        return static_cast<int>(a.thread->wait) < static_cast<int>(b.thread->wait);
    });
    std::string message = "nobody can go on:";
    for (const Group& group : groups) {
        message +=
            " " + std::to_string(group.count) +
            (group.thread->wait == Wait::ended ? std::string(" threads have ended;")
                                               : std::string(" threads wait at ") + group.thread->waits_at +
                                                     " of " + place(group.thread->site) + ";");
    }
    message.back() = ' ';
    message += "(launch " + std::to_string(grid.number) + ", block " + std::to_string(index) + ")";
    const Thread& first = *groups.front().thread;
    const bool barrier = first.wait == Wait::warp || first.wait == Wait::block || first.wait == Wait::cluster;
    executor().set_fault(barrier ? FaultKind::divergent_barrier : FaultKind::deadlock, first.site, message);
}

void Block::end(Thread& thread) {
    if (!thread.copies.empty()) {
        fail(FaultKind::pending_copy, thread.copies.front().site,
             "the thread ends before this copy has landed");
    }
    if (thread.warp->arrived > 0) {
        fail(FaultKind::divergent_barrier, thread.warp->site, "a lane ended while others wait at %s",
             thread.warp->name);
    }
    if (at_barrier > 0) {
        fail(FaultKind::divergent_barrier, barrier_site, "a thread ended while others wait at %s",
             barrier_name);
    }
    if (last_outside_read > thread.cluster_waits) {
        fail(FaultKind::misuse, outside_read_site,
             "the block ends while others of its cluster may still read its shared memory here");
    }
    ++thread.warp->ended;
    ++cluster->ended;
    cluster->end_phase_if_complete();
    if (++n_ended == grid.threads) {
        for (const BulkBarrier& barrier : barriers) {
            if (barrier.copies.empty()) continue;
            const Copy& copy = barrier.copies.front();
            fail(copy.pushed.empty() ? FaultKind::pending_copy : FaultKind::misuse, copy.site,
                 "the block ends before this copy to it has landed");
        }
    }
    --thread.warp->runnable;
    --n_runnable;
    thread.wait = Wait::ended;
}

void Block::meet_warp(Thread& thread, const char* name, Site site, bool orders_memory) {
    Warp& warp = *thread.warp;
    if (warp.ended > 0) {
        fail(FaultKind::divergent_barrier, site, "%s, but %d lanes of the warp have ended", name, warp.ended);
    }
    if (warp.arrived == 0) {
        warp.name = name;
        warp.site = site;
    } else if (warp.site.line != site.line || warp.site.file != site.file || warp.name != name) {
        fail(FaultKind::divergent_barrier, site, "%s, but other lanes wait at %s of %s", name, warp.name,
             place(warp.site).c_str());
    }
    if (++warp.arrived < warp.lanes) return pause(thread, Wait::warp, name, site);
    warp.arrived = 0;
    ++warp.round;
    const auto first = threads.begin() + warp.first;
    for (auto lane = first; lane != first + warp.lanes; ++lane) {
        if (lane->wait == Wait::warp) wake(*lane);
    }
    if (!orders_memory) return;
    ++warp.memory_epoch;
    for (const int index : warp.seen_since) {
        const auto seen = barriers[static_cast<size_t>(index)].seen.begin() + warp.first;
        std::fill(seen, seen + warp.lanes, *std::max_element(seen, seen + warp.lanes));
    }
    warp.seen_since.clear();
}

uint32_t Thread::access_epoch() const {
    return block->epoch + (cluster_arrivals != cluster_waits ? 1 : 0);
}

void Block::meet_block(Thread& thread, const char* name, Site site, uint32_t epochs) {
    if (n_ended > 0) {
        fail(FaultKind::divergent_barrier, site, "%s, but %d threads of the block have ended", name, n_ended);
    }
    if (at_barrier == 0) {
        barrier_name = name;
        barrier_site = site;
    } else if (barrier_site.line != site.line || barrier_site.file != site.file) {
        fail(FaultKind::divergent_barrier, site, "%s, but other threads wait at %s of %s", name, barrier_name,
             place(barrier_site).c_str());
    }
    if (++at_barrier < grid.threads) return pause(thread, Wait::block, name, site);
    at_barrier = 0;
    last_vote = vote;
    vote = false;
    epoch += epochs;
    wake_all(Wait::block);
    for (BulkBarrier& barrier : barriers) {
        std::fill(barrier.seen.begin(), barrier.seen.end(),
                  *std::max_element(barrier.seen.begin(), barrier.seen.end()));
    }
}

}  // namespace pykernels::simt
