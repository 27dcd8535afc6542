// In-kernel timestamps. Without CMake's option PYKERNELS_TIMESTAMPS this class is empty. With it, lane 0 of
// the first and the last warp of each block reads the SM's clock at the points that the kernel marks. While
// the host records, each writes a record (timestamps.h) when it ends.
//
//     Timestamps timestamps;  // first in the kernel: `start`; its destructor is `end`
//     ...
//     timestamps.mark(TimestampPoint::producers_done);
//
// A kernel marks producers_done right after wait_for_producers(). There the index of its record is taken, so
// that records are in launch order: a kernel's wait returns when all earlier kernels have completed. Memory
// latency is hidden: the ring's address is loaded at `start` and first used at producers_done; the index
// returned by that atomic is used at `end`.
#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/common/ptx_math.cuh"
#include "timestamps.h"

namespace pykernels::cuda {

// Of a kernel that records none.
class NoTimestamps {
  public:
    static constexpr bool enabled = false;

    __device__ __forceinline__ void mark(TimestampPoint) const {}
};

#ifdef PYKERNELS_TIMESTAMPS

struct alignas(64) StampRing {
    uint32_t taken;  // may exceed the capacity
};  // followed by the records

// One per source file, since device code is not linked.
struct alignas(16) StampSink {
    StampRing* ring;  // null: the host does not record
    uint32_t capacity, kernel;
};

// Registers a file's sink with the host when the library is loaded.
struct StampedFile {
    StampedFile(const char* source, StampSink& sink);
};

namespace {
__device__ StampSink stamp_sink;
[[maybe_unused]] const StampedFile stamped_file(__BASE_FILE__, stamp_sink);

// In each file a class of its own, as its sink is: of one class, the linker would keep one file's functions
// for all where they are not inlined.
class Timestamps {
  public:
    static constexpr bool enabled = true;

    __device__ __forceinline__ Timestamps() : start_(clock()) {
        load_sink();
#pragma unroll
        for (uint32_t& ticks : passed_) ticks = start_ + stamp_missing;
    }
    Timestamps(const Timestamps&) = delete;
    Timestamps& operator=(const Timestamps&) = delete;

    // Of a point that is passed several times, the last one counts.
    __device__ __forceinline__ void mark(TimestampPoint point) {
        passed_[static_cast<int>(point) - 1] = clock();
        if (point == TimestampPoint::producers_done && records())
            index_ = atomic_increment(&ring()->taken, ~0u);
        if (point == TimestampPoint::streamed)
            load_sink();  // again, so that it takes no registers in the mainloop
    }

    __device__ __forceinline__ ~Timestamps() {
        const uint64_t end = sm_clock(), end_ns = device_clock_ns();
        if (!records() || index_ >= sink_.z) return;
        const uint32_t ticks = static_cast<uint32_t>(end) - start_;
        const uint64_t start = end - ticks;
        auto* to = reinterpret_cast<uint4*>(ring() + 1) + uint64_t{index_} * (sizeof(StampRecord) / 16);
        store(to, make_uint4(static_cast<uint32_t>(start), static_cast<uint32_t>(start >> 32),
                             static_cast<uint32_t>(end_ns), static_cast<uint32_t>(end_ns >> 32)));
        store(to + 1,
              make_uint4(passed_[0] - start_, passed_[1] - start_, passed_[2] - start_, passed_[3] - start_));
        store(to + 2, make_uint4(passed_[4] - start_, passed_[5] - start_, ticks, sink_.w));
        store(to + 3, make_uint4(blockIdx.x, gridDim.x, sm_index(), threadIdx.x / 32));
    }

  private:
    // The low half of the clock: it wraps after two seconds.
    __device__ __forceinline__ static uint32_t clock() { return static_cast<uint32_t>(sm_clock()); }
    __device__ __forceinline__ void load_sink() {
        sink_ = load_variable(reinterpret_cast<const uint4*>(&stamp_sink));
    }
    __device__ __forceinline__ StampRing* ring() const {
        return reinterpret_cast<StampRing*>(uint64_t{sink_.y} << 32 | sink_.x);
    }
    // Whether this thread writes a record.
    __device__ __forceinline__ bool records() const {
        const uint32_t warp = threadIdx.x / 32;
        return threadIdx.x % 32 == 0 && (warp == 0 || warp == (blockDim.x - 1) / 32) && ring() != nullptr;
    }

    uint32_t start_;
    uint32_t passed_[stamp_points - 2];  // one tick before start where the point was not passed
    uint32_t index_ = ~0u;

    uint4 sink_;  // a StampSink
};

}  // namespace

#else

using Timestamps = NoTimestamps;

#endif

}  // namespace pykernels::cuda
