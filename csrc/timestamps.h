// In-kernel timestamps of the CUDA kernels: the layout of a record, and the host's functions. They exist only
// in builds with CMake's option PYKERNELS_TIMESTAMPS (cuda/common/timestamps.cuh).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pykernels::cuda {

// In the order in which a kernel passes them. A kernel marks some or all of those between start and end.
enum class TimestampPoint : int {
    start,
    first_copies,    // the prefetches ahead of griddepcontrol.wait are issued
    producers_done,  // griddepcontrol.wait has returned
    x_ready,         // the activation is in shared memory or registers
    first_scores,    // attention: K of the warp's first tiles has arrived, and its scores are issued
    streamed,        // the mainloop has ended
    combined,        // attention: the partials of all warps and blocks that the warp waits for have arrived
    end,             // the warp exits
};
constexpr int stamp_points = 8;

// The value of a point that the warp did not pass.
constexpr uint32_t stamp_missing = 0xffffffffu;

// The record of the first or the last warp of a block. pykernels/timestamps.py has the same layout.
struct alignas(16) StampRecord {
    uint64_t start_ticks;              // of the SM's clock, at `start`
    uint64_t end_ns;                   // of the device's clock, at `end`
    uint32_t ticks[stamp_points - 1];  // of the SM's clock since `start`: first_copies, ..., end
    uint32_t kernel;                   // index into timestamped_kernels()
    uint32_t block, blocks;            // of the launch
    uint32_t sm;
    uint32_t warp;  // of the block
};
static_assert(sizeof(StampRecord) == 64);

// The ops (names of source files), indexed by StampRecord::kernel.
std::vector<std::string> timestamped_kernels();

// Starts recording on the device, at most `capacity` records. Waits until the device is idle. Throws
// std::runtime_error while another recording is in progress.
void start_timestamps(int device, uint32_t capacity);

struct Timestamped {
    std::vector<StampRecord> records;  // in the order in which the warps passed producers_done
    uint64_t lost;                     // records beyond the capacity
};
// Waits until the device is idle, and ends the recording.

Timestamped stop_timestamps();

}  // namespace pykernels::cuda
