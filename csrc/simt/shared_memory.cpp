#include "simt/shared_memory.h"

#include <algorithm>
#include <cstring>

#include "simt/executor.h"

namespace pykernels::simt {
namespace {

// Stand in for a thread's number: no access yet, a cp.async.bulk, readers in several warps or lanes.
constexpr uint16_t nobody = 0xffff, bulk_copy = 0xfffe, several_warps = 0xfffd, several_lanes = 0x8000;

size_t first_granule(size_t offset) {
    return offset / granule_bytes;
}

size_t end_granule(size_t offset, size_t bytes) {
    return (offset + bytes + granule_bytes - 1) / granule_bytes;
}

// Is what thread `number` did in those epochs ordered before what `thread` does now?
bool ordered(const Thread& thread, uint16_t number, uint32_t epoch, uint32_t warp_epoch) {
    if (epoch < thread.block->epoch || number == thread.number) return true;
    return number / warp_lanes == thread.number / warp_lanes && warp_epoch != thread.warp->memory_epoch;
}

}  // namespace

void SharedMemory::reset(size_t bytes) {
    size_ = bytes;
    bytes_.assign(bytes + 128, 0xff);
    offset_ = (128 - reinterpret_cast<uintptr_t>(bytes_.data()) % 128) % 128;
    granules_.assign(bytes / granule_bytes + 1,
                     {0, 0, 0, 0, 0, nobody, nobody, 0, 0, 0, 0, State::unwritten});
    files_.clear();
}

uint8_t SharedMemory::file_number(const char* file) {
    for (size_t i = 0; i < files_.size(); ++i) {
        if (files_[i] == file) return static_cast<uint8_t>(i);
    }
    files_.push_back(file);
    return static_cast<uint8_t>(files_.size() - 1);
}

// What the thread does now is in order with the granule's last write, or there was none.
bool SharedMemory::in_order_with_writer(const Thread& thread, const Granule& granule) const {
    if (granule.state == State::unwritten) return true;
    if (granule.state != State::written) return false;
    if (granule.writer != bulk_copy) {
        return ordered(thread, granule.writer, granule.write_epoch, granule.write_warp_epoch);
    }
    return thread.block->has_seen(thread, static_cast<int>(granule.write_epoch), granule.write_warp_epoch);
}

void SharedMemory::report_writer(const Granule& granule, size_t offset, const char* action, Site site) const {
    const char* file = files_[granule.file];
    const int line = granule.line;
    if (granule.state == State::copying) {
        fail(FaultKind::pending_copy, site,
             "%s shared memory at byte %zu while the copy of %s:%d is under way", action, offset, file, line);
    }
    if (granule.state == State::barrier) {
        fail(FaultKind::misuse, site, "%s the mbarrier of %s:%d at byte %zu of shared memory", action, file,
             line, offset);
    }
    if (granule.writer == bulk_copy) {
        fail(FaultKind::pending_copy, site,
             "%s shared memory at byte %zu without having waited for the copy of %s:%d", action, offset, file,
             line);
    }
    fail(FaultKind::shared_race, site,
         "%s shared memory at byte %zu that thread %d wrote at %s:%d, with no barrier between", action,
         offset, int{granule.writer}, file, line);
}

void SharedMemory::record_read(const Thread& thread, Granule& granule) const {
    const uint32_t warp_epoch = thread.warp->memory_epoch;
    const auto number = static_cast<uint16_t>(thread.number);
    const auto warp = static_cast<uint16_t>(thread.number / warp_lanes);
    if (granule.reader == nobody || granule.read_epoch < thread.block->epoch) {
        granule.read_epoch = 0;
        granule.reader = number;
    } else if (granule.reader != several_warps) {
        const bool lanes = (granule.reader & several_lanes) != 0;
        const int before = lanes ? granule.reader & ~several_lanes : granule.reader / warp_lanes;
        if (before != warp) {
            granule.reader = several_warps;
        } else if (granule.read_warp_epoch != warp_epoch) {
            granule.reader = number;
        } else if (granule.reader != number) {
            granule.reader = several_lanes | warp;
        }
    }
    granule.read_epoch = std::max(granule.read_epoch, thread.access_epoch());
    granule.read_warp_epoch = warp_epoch;
    granule.own_read = std::max(granule.own_read, static_cast<uint16_t>(thread.cluster_arrivals + 1));
}

void SharedMemory::read(const Thread& thread, size_t offset, size_t bytes, Site site) {
    for (size_t i = first_granule(offset); i < end_granule(offset, bytes); ++i) {
        Granule& granule = granules_[i];
        if (granule.state == State::unwritten) {
            fail(FaultKind::uninitialised_read, site,
                 "reads shared memory at byte %zu, which nobody has written", i * granule_bytes);
        }
        if (!in_order_with_writer(thread, granule)) report_writer(granule, i * granule_bytes, "reads", site);
        record_read(thread, granule);
    }
}

void SharedMemory::check_write(const Thread& thread, size_t offset, size_t bytes, Site site) {
    for (size_t i = first_granule(offset); i < end_granule(offset, bytes); ++i) {
        const Granule& granule = granules_[i];
        if (!in_order_with_writer(thread, granule)) report_writer(granule, i * granule_bytes, "writes", site);
        if (granule.outside_read > thread.cluster_waits) {
            fail(FaultKind::shared_race, site,
                 "writes shared memory at byte %zu that another block of the cluster read, with no "
                 "cluster_arrive "
                 "and cluster_wait between",
                 i * granule_bytes);
        }
        if (granule.reader == nobody || granule.read_epoch < thread.block->epoch) continue;
        const int warp = thread.number / warp_lanes;
        bool in_order = false;
        if (granule.reader == several_warps) {
            in_order = false;
        } else if (granule.reader & several_lanes) {
            in_order = (granule.reader & ~several_lanes) == warp &&
                       granule.read_warp_epoch != thread.warp->memory_epoch;
        } else {
            in_order = ordered(thread, granule.reader, granule.read_epoch, granule.read_warp_epoch);
        }
        if (!in_order) {
            fail(FaultKind::shared_race, site,
                 "writes shared memory at byte %zu that %s read, with no barrier between", i * granule_bytes,
                 granule.reader & several_lanes ? "other threads"
                                                : ("thread " + std::to_string(granule.reader)).c_str());
        }
    }
}

void SharedMemory::record_write(const Thread& thread, size_t offset, size_t bytes, State state, Site site) {
    const uint8_t file = file_number(site.file);
    const uint32_t time = ++executor().time;
    for (size_t i = first_granule(offset); i < end_granule(offset, bytes); ++i) {
        granules_[i] = {thread.access_epoch(),
                        thread.warp->memory_epoch,
                        0,
                        0,
                        time,
                        static_cast<uint16_t>(thread.number),
                        nobody,
                        0,
                        0,
                        static_cast<uint16_t>(site.line),
                        file,
                        state};
    }
}

void SharedMemory::write(const Thread& thread, size_t offset, size_t bytes, Site site) {
    check_write(thread, offset, bytes, site);
    record_write(thread, offset, bytes, State::written, site);
}

void SharedMemory::begin_copy(const Thread& thread, size_t offset, size_t bytes, Site site) {
    check_write(thread, offset, bytes, site);
    record_write(thread, offset, bytes, State::copying, site);
}

void SharedMemory::land(const Thread& thread, size_t offset, size_t bytes) {
    const uint32_t time = ++executor().time;
    for (size_t i = first_granule(offset); i < end_granule(offset, bytes); ++i) {
        granules_[i].state = State::written;
        granules_[i].write_time = time;
        granules_[i].write_epoch = thread.access_epoch();
        granules_[i].write_warp_epoch = thread.warp->memory_epoch;
    }
}

void SharedMemory::land(int barrier, uint32_t phase, size_t offset, size_t bytes) {
    const uint32_t time = ++executor().time;
    for (size_t i = first_granule(offset); i < end_granule(offset, bytes); ++i) {
        granules_[i].state = State::written;
        granules_[i].write_time = time;
        granules_[i].writer = bulk_copy;
        granules_[i].write_epoch = static_cast<uint32_t>(barrier);
        granules_[i].write_warp_epoch = phase;
    }
}

void SharedMemory::make_barrier(const Thread& thread, size_t offset, Site site) {
    check_write(thread, offset, 8, site);
    record_write(thread, offset, 8, State::barrier, site);
}

void SharedMemory::use_barrier(const Thread& thread, size_t offset, Site site) {
    const Granule& granule = granules_[first_granule(offset)];
    if (granule.state != State::barrier) {
        fail(FaultKind::misuse, site, "no mbarrier was made at byte %zu of shared memory", offset);
    }
    if (!ordered(thread, granule.writer, granule.write_epoch, granule.write_warp_epoch)) {
        fail(FaultKind::shared_race, site,
             "uses a mbarrier that thread %d made at %s:%d, with no barrier between", int{granule.writer},
             files_[granule.file], int{granule.line});
    }
}

}  // namespace pykernels::simt
