// In-kernel timestamps of a kernel. Without PYKERNELS_TIMESTAMPS (CMake's option) an object of this type is
// nothing at all. With it the first and the last warp of every block, lane 0 each, read the SM's clock at the
// points that the kernel marks, and when they end leave a record (stamps.h) while the host asks for records.
//
//     Timestamps timestamps;  // first of all: `start`. Its end is `end`
//     ...
//     timestamps.mark(TimestampPoint::producers_done);
//
// A kernel marks producers_done right behind its wait_for_producers(): there the record's place is taken.
// Places are then in the order of the launches, since a kernel's wait ends when all before it have ended.
// What is asked of memory has time to come: where the records go is asked for at `start` and first needed at
// producers_done, and the atomic's answer from there is needed at `end`.
#pragma once

#include "cuda/common/ptx.cuh"
#include "timestamps.h"

namespace pykernels::cuda {

#ifdef PYKERNELS_TIMESTAMPS

struct alignas(64) StampRing {
    uint32_t taken;  // may pass the capacity
};  // and behind it the records

// What the kernels of one file know: each has its own, since device code is not linked.
struct alignas(16) StampSink {
    StampRing* ring;  // null: nobody asks for records
    uint32_t capacity, kernel;
};

// Tells the host of a file's sink, when the library is loaded.
struct StampedFile {
    StampedFile(const char* source, StampSink& sink);
};

namespace {
__device__ StampSink stamp_sink;
[[maybe_unused]] const StampedFile stamped_file(__BASE_FILE__, stamp_sink);
}  // namespace

class Timestamps {
  public:
    __device__ __forceinline__ Timestamps() : start_(clock()) {
        ask_for_sink();
#pragma unroll
        for (uint32_t& ticks : passed_) ticks = start_ + stamp_missing;
    }
    Timestamps(const Timestamps&) = delete;
    Timestamps& operator=(const Timestamps&) = delete;

    // A point that is passed again counts where it was passed last.
    __device__ __forceinline__ void mark(TimestampPoint point) {
        passed_[static_cast<int>(point) - 1] = clock();
        if (point == TimestampPoint::producers_done && records())
            place_ = atomic_increment(&ring()->taken, ~0u);
        if (point == TimestampPoint::streamed)
            ask_for_sink();  // again, to keep no registers through the stream
    }

    __device__ __forceinline__ ~Timestamps() {
        const uint64_t end = sm_clock(), end_ns = device_clock_ns();
        if (!records() || place_ >= sink_.z) return;
        const uint32_t ticks = static_cast<uint32_t>(end) - start_;
        const uint64_t start = end - ticks;
        auto* to = reinterpret_cast<uint4*>(ring() + 1) + uint64_t{place_} * (sizeof(StampRecord) / 16);
        store(to, make_uint4(static_cast<uint32_t>(start), static_cast<uint32_t>(start >> 32),
                             static_cast<uint32_t>(end_ns), static_cast<uint32_t>(end_ns >> 32)));
        store(to + 1,
              make_uint4(passed_[0] - start_, passed_[1] - start_, passed_[2] - start_, passed_[3] - start_));
        store(to + 2, make_uint4(ticks, sink_.w, blockIdx.x, gridDim.x));
        store(to + 3, make_uint4(sm_index(), threadIdx.x / 32, 0, 0));
    }

  private:
    // The clock's low half: enough for two seconds.
    __device__ __forceinline__ static uint32_t clock() { return static_cast<uint32_t>(sm_clock()); }
    __device__ __forceinline__ void ask_for_sink() {
        sink_ = load_variable(reinterpret_cast<const uint4*>(&stamp_sink));
    }
    __device__ __forceinline__ StampRing* ring() const {
        return reinterpret_cast<StampRing*>(uint64_t{sink_.y} << 32 | sink_.x);
    }
    // Whether this thread does.
    __device__ __forceinline__ bool records() const {
        const uint32_t warp = threadIdx.x / 32;
        return threadIdx.x % 32 == 0 && (warp == 0 || warp == (blockDim.x - 1) / 32) && ring() != nullptr;
    }

    uint32_t start_;
    uint32_t passed_[stamp_points - 2];  // a tick before start where it was not
    uint32_t place_ = ~0u;
    uint4 sink_;  // a StampSink
};

#else

class Timestamps {
  public:
    __device__ __forceinline__ void mark(TimestampPoint) const {}
};

#endif

}  // namespace pykernels::cuda
