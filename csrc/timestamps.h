// In-kernel timestamps of the CUDA kernels: what a record holds, and the host's calls. There are kernels that
// timestamp only in a build with CMake's option PYKERNELS_TIMESTAMPS (cuda/common/stamps.cuh); the calls are
// missing in others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pykernels::cuda {

// In the order in which a kernel passes them; one has some or all of those between start and end.
enum class TimestampPoint : int {
    start,
    first_copies,    // what is asked for ahead of the wait has been asked for
    producers_done,  // the kernel before has ended: wait_for_producers() has returned
    x_ready,         // the activation is where the stream wants it
    streamed,        // the last piece of what is streamed is used
    end,             // the warp has nothing left to do
};
constexpr int stamp_points = 6;

// What a point has that the warp did not pass.
constexpr uint32_t stamp_missing = 0xffffffffu;

// Of one warp of a block, the first or the last. pykernels/timestamps.py reads it field by field.
struct alignas(16) StampRecord {
    uint64_t start_ticks;              // of the SM's clock, at `start`
    uint64_t end_ns;                   // of the device's clock, at `end`
    uint32_t ticks[stamp_points - 1];  // of the SM's clock since `start`: first_copies, ..., end
    uint32_t kernel;                   // index into timestamped_kernels()
    uint32_t block, blocks;            // of the launch
    uint32_t sm;
    uint32_t warp;  // of the block
    uint32_t reserved[2];
};
static_assert(sizeof(StampRecord) == 64);

// The op whose file a kernel is of, by StampRecord::kernel.
std::vector<std::string> timestamped_kernels();

// From here on the device's kernels record, `capacity` records at most. Waits until the device is idle.
// Throws std::runtime_error where they record already.
void start_timestamps(int device, uint32_t capacity);

struct Timestamped {
    std::vector<StampRecord> records;  // in the order in which the warps passed producers_done
    uint64_t lost;                     // records that came when all places were taken
};
// Waits until the device is idle, and ends it.
Timestamped stop_timestamps();

}  // namespace pykernels::cuda
