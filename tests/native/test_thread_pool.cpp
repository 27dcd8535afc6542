// The thread pool under stress: every chunk runs exactly once, whoever calls, from wherever, however often.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/thread_pool.h"
#include "ops.h"

using namespace pykernels;

namespace {

// Every chunk of one call is run once.
void run_once(int64_t n_chunks) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(n_chunks));
    cpu::parallel_chunks(n_chunks, [&](int64_t chunk) { seen[static_cast<size_t>(chunk)].fetch_add(1); });
    for (int64_t i = 0; i < n_chunks; ++i) {
        CHECK(seen[static_cast<size_t>(i)] == 1, "chunk %lld ran %d times", static_cast<long long>(i),
              seen[static_cast<size_t>(i)].load());
    }
}

void many_small_calls() {
    std::atomic<int64_t> total{0};
    constexpr int64_t calls = 50000;
    for (int64_t i = 0; i < calls; ++i) cpu::parallel_chunks(3, [&](int64_t chunk) { total += chunk; });
    CHECK(total == calls * 3, "%lld", static_cast<long long>(total.load()));
}

// Workers fall asleep between these.
void after_sleep() {
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        run_once(7);
    }
}

void nested() {
    std::atomic<int> total{0};
    cpu::parallel_chunks(4, [&](int64_t) { cpu::parallel_chunks(5, [&](int64_t) { total += 1; }); });
    CHECK(total == 20, "%d", total.load());
}

void several_callers() {
    std::atomic<int64_t> total{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c) {
        callers.emplace_back([&] {
            for (int i = 0; i < 2000; ++i) cpu::parallel_chunks(4, [&](int64_t) { total += 1; });
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(total == 4 * 2000 * 4, "%lld", static_cast<long long>(total.load()));
}

void forked() {
    const pid_t child = fork();
    if (child == 0) {
        std::atomic<int> total{0};
        cpu::parallel_chunks(8, [&](int64_t) { total += 1; });
        _exit(total == 8 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
}

void bad_counts() {
    for (const int count : {0, -1, 257}) {
        bool thrown = false;
        try {
            cpu::set_num_threads(count);
        } catch (const std::invalid_argument&) {
            thrown = true;
        }
        CHECK(thrown, "set_num_threads(%d) was taken", count);
    }
}

}  // namespace

int main() {
    for (const int threads : {1, 2, 3, 8}) {
        cpu::set_num_threads(threads);
        CHECK(cpu::num_threads() == threads, "%d", cpu::num_threads());
        for (const int64_t n_chunks : {0, 1, 2, 3, 100}) run_once(n_chunks);
        many_small_calls();
        after_sleep();
        nested();
        several_callers();
        forked();
    }
    bad_counts();
    return test::failed();
}
