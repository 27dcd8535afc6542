#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/settings.h"
#include "ops.h"

namespace pykernels::cpu {
namespace {

// Long enough to bridge the host's work between two ops of a layer, short against torch's own parallel
// regions.
constexpr auto spin_time = std::chrono::microseconds(50);

constexpr int max_threads = 256;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// A job is open from its publication until the caller finds no chunk left. The caller waits only for workers
// that entered the open job, so a sleeping worker costs it nothing.
class Pool {
  public:
    // Throws std::system_error where the system makes no more threads; those that were made have ended then.
    explicit Pool(int n_threads) {
        workers_.reserve(static_cast<size_t>(n_threads));
        try {
            for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this] { work(); });
        } catch (...) {
            stop();
            throw;
        }
    }

    // Only set_num_threads() deletes a pool, with the caller's lock held.
    ~Pool() { stop(); }

    int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int64_t n_chunks, ChunkFunction function, void* context) {
        function_ = function;
        context_ = context;
        n_chunks_ = n_chunks;
        next_chunk_.store(0, std::memory_order_relaxed);
        finished_.store(0, std::memory_order_relaxed);
        generation_ += 1;
        // Sequentially consistent against `sleepers_`: either the worker sees the job before it sleeps, or
        // the caller sees the sleeper.
        state_.store(generation_ << generation_shift | open_bit, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            {
                const std::lock_guard lock(sleep_mutex_);
            }
            wake_.notify_all();
        }
        take_chunks();
        const uint64_t closed = state_.fetch_and(~open_bit, std::memory_order_acq_rel);
        const uint64_t entered = (closed & ((uint64_t{1} << generation_shift) - 1)) / one_worker;
        while (finished_.load(std::memory_order_acquire) != entered) relax();
    }

  private:
    // state_: bit 0 open, bits 1..15 workers that entered, the rest the job's number.
    static constexpr uint64_t open_bit = 1, one_worker = 2;
    static constexpr int generation_shift = 16;

    void take_chunks() {
        for (;;) {
            const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= n_chunks_) return;
            function_(context_, chunk);
        }
    }

    bool is_new(uint64_t state, uint64_t last) const {
        return (state & open_bit) != 0 && state >> generation_shift != last;
    }

    void work();

    // Waits for the workers.
    void stop() {
        {
            const std::lock_guard lock(sleep_mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    std::atomic<uint64_t> state_{0};
    std::atomic<int64_t> next_chunk_{0};
    std::atomic<uint64_t> finished_{0};
    std::atomic<int> sleepers_{0};
    ChunkFunction function_ = nullptr;
    void* context_ = nullptr;
    int64_t n_chunks_ = 0;
    uint64_t generation_ = 0;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

thread_local bool inside_chunk = false;

void Pool::work() {
    inside_chunk = true;
    uint64_t last = 0;
    for (;;) {
        uint64_t state = state_.load(std::memory_order_acquire);
        const auto give_up = std::chrono::steady_clock::now() + spin_time;
        for (int round = 1; !is_new(state, last); ++round) {
            relax();
            state = state_.load(std::memory_order_acquire);
            if (round % 64 == 0 && std::chrono::steady_clock::now() > give_up) break;
        }
        if (!is_new(state, last)) {
            std::unique_lock lock(sleep_mutex_);
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [&] {
                state = state_.load(std::memory_order_seq_cst);
                return stopping_ || is_new(state, last);
            });
            sleepers_.fetch_sub(1, std::memory_order_relaxed);
            if (stopping_) return;
        }
        // Only an open job may be entered: once it is closed its fields may belong to the next one.
        while (is_new(state, last)) {
            if (state_.compare_exchange_weak(state, state + one_worker, std::memory_order_acq_rel)) {
                last = state >> generation_shift;
                take_chunks();
                finished_.fetch_add(1, std::memory_order_release);
                break;
            }
        }
    }
}

int default_threads() {
    const int from_environment = environment_integer("PYKERNELS_NUM_THREADS", 1, max_threads);
    if (from_environment > 0) return from_environment;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        const int count = CPU_COUNT(&allowed);
        return count < max_threads ? count : max_threads;
    }
    return 1;
}

// The pool is never destroyed at exit: sleeping workers end with the process.
std::mutex pool_mutex;
Pool* pool = nullptr;
// Of the pool that there is; 0: none yet. Read without the mutex, which a thread holds for as long as its op
// runs.
std::atomic<int> pool_threads{0};

// The pool before it, if any, is deleted when the new one is there.
void make_pool(int n_threads) {
    Pool* made = nullptr;
    try {
        made = new Pool(n_threads);
    } catch (const std::system_error& error) {
        throw std::runtime_error("the system cannot make " + std::to_string(n_threads) + " threads (" +
                                 error.what() +
                                 "): PYKERNELS_NUM_THREADS or set_num_threads() asks for fewer");
    }
    delete pool;
    pool = made;
    pool_threads.store(n_threads, std::memory_order_relaxed);
}

// A forked child has none of the workers, and the mutex may be held by a thread it does not have.
void forget_pool_in_child() {
    pool = nullptr;
    pool_threads.store(0, std::memory_order_relaxed);
    new (&pool_mutex) std::mutex();
}

void register_fork_handler() {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
    (void)registered;
}

Pool& locked_pool() {
    if (pool == nullptr) {
        register_fork_handler();
        make_pool(default_threads());
    }
    return *pool;
}

}  // namespace

void run_chunks(int64_t n_chunks, ChunkFunction function, void* context) {
    std::unique_lock lock(pool_mutex, std::defer_lock);
    if (n_chunks <= 1 || inside_chunk || !lock.try_lock()) {
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) function(context, chunk);
        return;
    }
    Pool& threads = locked_pool();
    inside_chunk = true;
    threads.run(n_chunks, function, context);
    inside_chunk = false;
}

int num_threads() {
    if (const int known = pool_threads.load(std::memory_order_relaxed)) return known;
    const std::lock_guard lock(pool_mutex);
    return locked_pool().n_threads();
}

void set_num_threads(int count) {
    if (count < 1 || count > max_threads) {
        throw std::invalid_argument("threads must be in 1.." + std::to_string(max_threads) + ", got " +
                                    std::to_string(count));
    }
    const std::lock_guard lock(pool_mutex);
    if (pool != nullptr && pool->n_threads() == count) return;
    register_fork_handler();
    make_pool(count);
}

}  // namespace pykernels::cpu
