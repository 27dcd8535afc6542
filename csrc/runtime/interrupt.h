// Interrupting the timed loops: they check from time to time whether to stop.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>

namespace pykernels {

class Interrupted : public std::exception {
  public:
    const char* what() const noexcept override { return "interrupted"; }
};

// The check; true ends the loop. The Python module sets one that looks for signals. Null: no check.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);
bool interrupt_requested();

// Runs the steps of one loop and asks: between samples twenty times a second, where no sample's time includes
// it, and within a sample once a second. Both throw Interrupted.
class InterruptPoll {
  public:
    using Clock = std::chrono::steady_clock;

    // Steps come in blocks, whose length is chosen by the time that the last block took: the inner loop
    // counts nothing but its steps, and the clock is read (25 ns) about twenty times a second.
    template <class Step>
    void repeat(int64_t count, Step&& step) {
        while (count > 0) {
            const int64_t n = count < left_ ? count : left_;
            for (int64_t i = 0; i < n; ++i) step();
            count -= n;
            left_ -= n;
            if (left_ == 0) next_block();
        }
    }

    // After a sample that ended at `end`. Returns when the next one begins.
    Clock::time_point between_samples(Clock::time_point end);

  private:
    void next_block();

    int64_t left_ = 1, block_ = 1;
    Clock::time_point block_begin_ = Clock::now(), asked_ = block_begin_;
};

}  // namespace pykernels
