#include "simt/executor.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace pykernels::simt {

const char* kind_name(FaultKind kind) {
    switch (kind) {
        case FaultKind::out_of_bounds:
            return "out of bounds";
        case FaultKind::misaligned:
            return "misaligned";
        case FaultKind::uninitialised_read:
            return "uninitialised read";
        case FaultKind::pending_copy:
            return "pending copy";
        case FaultKind::shared_race:
            return "shared-memory race";
        case FaultKind::divergent_barrier:
            return "divergent barrier";
        case FaultKind::deadlock:
            return "deadlock";
        case FaultKind::unordered_launches:
            return "unordered launches";
        case FaultKind::unordered_blocks:
            return "unordered blocks";
        case FaultKind::misuse:
            return "misuse";
    }
    return "unknown";
}

Executor& executor() {
    static Executor instance;
    return instance;
}

void Executor::configure(const Settings& settings) {
    if (settings.sm_count < 1) {
        throw std::invalid_argument("sm_count must be at least 1, got " + std::to_string(settings.sm_count));
    }
    if (settings.arch != 80 && settings.arch != 90) {
        throw std::invalid_argument("arch must be 80 or 90, got " + std::to_string(settings.arch));
    }
    settings_ = settings;
    // The same seed is the same order, whatever ran before.
    random_.seed(static_cast<Random::result_type>(settings.seed * 2654435761u + 1));
    accesses_left = 1;
}

void Executor::enqueue(std::function<void()> body, int cluster_blocks, int blocks, int threads,
                       size_t shared_bytes, bool programmatic) {
    if (cluster_blocks < 1 || cluster_blocks > max_cluster_blocks || blocks % cluster_blocks != 0) {
        throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks in clusters of " +
                                 std::to_string(cluster_blocks) + "; clusters have 1 to " +
                                 std::to_string(max_cluster_blocks) + " and divide the launch");
    }
    if (blocks < 1) throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks");
    if (threads < 1 || threads > max_block_threads) {
        throw std::runtime_error("a launch of " + std::to_string(threads) + " threads a block; 1 to " +
                                 std::to_string(max_block_threads) + " are allowed");
    }
    if (shared_bytes > static_cast<size_t>(settings_.shared_bytes)) {
        throw std::runtime_error("a launch with " + std::to_string(shared_bytes) +
                                 " bytes of shared memory; the device has " +
                                 std::to_string(settings_.shared_bytes));
    }
    auto grid = std::make_unique<Grid>();
    grid->body = std::move(body);
    grid->blocks = blocks;
    grid->cluster_blocks = cluster_blocks;
    grid->threads = threads;
    grid->shared_bytes = shared_bytes;
    grid->number = static_cast<int>(grids_.size());
    grid->programmatic = programmatic && grid->number > 0;
    grid->first_unit = next_unit_;
    next_unit_ += static_cast<Unit>(blocks);
    grids_.push_back(std::move(grid));
}

void Executor::synchronize() {
    run_all();
    resident_.clear();
    clusters_.clear();
    grids_.clear();
    time = 0;
    base_unit_ = next_unit_;
    if (fault_) {
        const Fault fault = *std::exchange(fault_, std::nullopt);
        throw fault;
    }
}

bool Executor::may_start(const Grid& grid) const {
    if (grid.started == grid.blocks) return false;
    if (grid.number == 0) return true;
    const Grid& before = *grids_[static_cast<size_t>(grid.number) - 1];
    if (grid.programmatic) return before.triggered == before.blocks;
    return std::all_of(grids_.begin(), grids_.begin() + grid.number,
                       [](const auto& other) { return other->complete(); });
}

// When the first block of a launch starts: which earlier launches its threads may read before their wait.
void Executor::open(Grid& grid) {
    grid.order.resize(static_cast<size_t>(grid.blocks / grid.cluster_blocks));
    std::iota(grid.order.begin(), grid.order.end(), 0);
    std::shuffle(grid.order.begin(), grid.order.end(), random_);
    grid.progress.resize(static_cast<size_t>(grid.blocks));
    if (grid.programmatic) {
        const Grid& producer = *grids_[static_cast<size_t>(grid.number) - 1];
        grid.before = producer.all_triggered_after_wait ? producer.after : producer.before;
    } else {
        grid.before.assign(static_cast<size_t>(grid.number), true);
        grid.after = grid.before;
    }
    grid.before.resize(static_cast<size_t>(grid.number));
}

void Executor::run_all() {
    // Resident blocks on the device, many or few: each shows orders that the other hides.
    const size_t max_resident =
        static_cast<size_t>(settings_.sm_count) * (1 + static_cast<size_t>(random_()) % 6);
    const uint64_t policy = settings_.seed % 3;
    struct Candidate {
        int grid;
        Block* block;  // null: start the next cluster
    };
    std::vector<Candidate> candidates;
    while (!fault_) {
        candidates.clear();
        for (Block* block : resident_) {
            if (block->runnable()) candidates.push_back({block->grid.number, block});
        }
        if (resident_.size() < max_resident) {
            for (const auto& grid : grids_) {
                if (may_start(*grid)) candidates.push_back({grid->number, nullptr});
            }
        }
        if (candidates.empty()) {
            if (!resident_.empty()) resident_.front()->report_deadlock();
            return;
        }
        if (policy != 0) {
            const auto by_grid = [](const Candidate& a, const Candidate& b) { return a.grid < b.grid; };
            const int wanted = policy == 1
                                   ? std::max_element(candidates.begin(), candidates.end(), by_grid)->grid
                                   : std::min_element(candidates.begin(), candidates.end(), by_grid)->grid;
            candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                            [&](const Candidate& c) { return c.grid != wanted; }),
                             candidates.end());
        }
        const Candidate chosen = candidates[random_() % candidates.size()];
        if (!chosen.block) {
            start_cluster(*grids_[static_cast<size_t>(chosen.grid)]);
            continue;
        }
        chosen.block->run();
        if (!fault_ && chosen.block->ended()) block_ended(*chosen.block);
    }
}

void Executor::start_cluster(Grid& grid) {
    if (grid.started == 0) open(grid);
    const int first =
        grid.order[static_cast<size_t>(grid.started / grid.cluster_blocks)] * grid.cluster_blocks;
    clusters_.push_back(std::make_unique<Cluster>());
    Cluster& cluster = *clusters_.back();
    cluster.threads = grid.cluster_blocks * grid.threads;
    for (int rank = 0; rank < grid.cluster_blocks; ++rank) {
        cluster.blocks.push_back(std::make_unique<Block>(grid, first + rank, &cluster, random_));
        resident_.push_back(cluster.blocks.back().get());
    }
    grid.started += grid.cluster_blocks;
}

void Executor::block_ended(Block& block) {
    Grid& grid = block.grid;
    if (!block.triggered) {
        ++grid.triggered;
        for (const Thread& thread : block.threads) grid.all_triggered_after_wait &= thread.has_waited;
    }
    ++grid.ended;
    resident_.erase(std::find(resident_.begin(), resident_.end(), &block));
    if (block.cluster->complete()) {
        clusters_.erase(std::find_if(clusters_.begin(), clusters_.end(),
                                     [&](const auto& cluster) { return cluster.get() == block.cluster; }));
    }
    if (!grid.complete()) return;
    for (Block* other : resident_) {
        if (other->grid.number == grid.number + 1) other->wake_all(Wait::producers);
    }
}

void Executor::trigger(Thread& thread) {
    Block& block = *thread.block;
    if (block.triggered) return;
    block.triggered = true;
    ++block.grid.triggered;
    block.grid.all_triggered_after_wait &= thread.has_waited;
}

void Executor::wait_for_producers(Thread& thread, Site site) {
    Grid& grid = thread.block->grid;
    if (grid.programmatic) {
        const Grid& producer = *grids_[static_cast<size_t>(grid.number) - 1];
        while (!producer.complete()) thread.block->pause(thread, Wait::producers, "wait_for_producers", site);
        if (grid.after.empty()) {
            // The producer has ended, and so has every launch that any of its threads waited for.
            grid.after = producer.any_waited ? producer.after : producer.before;
            grid.after.resize(static_cast<size_t>(grid.number));
            grid.after.back() = true;
            for (size_t i = 0; i < grid.before.size(); ++i) grid.after[i] = grid.after[i] || grid.before[i];
        }
    }
    thread.has_waited = true;
    grid.any_waited = true;
}

uint64_t Executor::clock_ns() {
    return clock_ns_ += 1000;
}

void Executor::set_fault(FaultKind kind, Site site, const std::string& message) {
    if (fault_) return;
    fault_.emplace(kind, site,
                   std::string(kind_name(kind)) + " at " + site.file + ":" + std::to_string(site.line) +
                       ": " + message + " [seed " + std::to_string(settings_.seed) + "]");
}

std::unique_ptr<Fiber> Executor::take_fiber() {
    if (spare_fibers_.empty()) return std::make_unique<Fiber>();
    auto fiber = std::move(spare_fibers_.back());
    spare_fibers_.pop_back();
    return fiber;
}

void Executor::give_fiber(std::unique_ptr<Fiber> fiber) {
    spare_fibers_.push_back(std::move(fiber));
}

}  // namespace pykernels::simt
