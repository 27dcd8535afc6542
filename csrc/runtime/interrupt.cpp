#include "runtime/interrupt.h"

#include <algorithm>
#include <atomic>

namespace pykernels {
namespace {

constexpr auto block_time = std::chrono::milliseconds(50);
constexpr auto longest_deaf_time = std::chrono::seconds(1);
constexpr int64_t longest_block = int64_t{1} << 30;

std::atomic<InterruptCheck> interrupt_check{nullptr};

}  // namespace

void set_interrupt_check(InterruptCheck check) {
    interrupt_check.store(check, std::memory_order_relaxed);
}

bool interrupt_requested() {
    const InterruptCheck check = interrupt_check.load(std::memory_order_relaxed);
    return check != nullptr && check();
}

InterruptPoll::Clock::time_point InterruptPoll::between_samples(Clock::time_point end) {
    if (end - asked_ < block_time) return end;
    if (interrupt_requested()) throw Interrupted();
    asked_ = Clock::now();
    return asked_;
}

void InterruptPoll::next_block() {
    const auto now = Clock::now();
    const double steps = static_cast<double>(block_) * std::chrono::duration<double>(block_time).count() /
                         std::max(std::chrono::duration<double>(now - block_begin_).count(), 1e-9);
    block_ = steps < static_cast<double>(longest_block) ? std::max<int64_t>(static_cast<int64_t>(steps), 1)
                                                        : longest_block;
    left_ = block_;
    block_begin_ = now;
    if (now - asked_ < longest_deaf_time) return;
    if (interrupt_requested()) throw Interrupted();
    asked_ = block_begin_ = Clock::now();
}

}  // namespace pykernels
